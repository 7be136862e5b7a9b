"""How likely a model finds each token: sums of negative log-likelihoods over stretches of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from llmkit.errors import DataError, ResourceError
from llmkit.evaluation.logits import ChosenLogits
from llmkit.evaluation.stretches import Stretches
from llmkit.evaluation.windows import Places

CHUNK = 4096
"""Rows that are sorted by length together."""

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens in a batch when none are asked for; more is not faster."""

Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class Batch(NamedTuple):
    """Rows of one width for a model."""

    inputs: dict[str, Tensor]
    """`input_ids` int64 [rows, width], and `attention_mask` where the model looks at padding."""
    chosen: Tensor
    """bool [rows, width], where something is scored."""
    targets: Tensor
    """int64 [scored], what is scored there, in reading order."""
    places: Places
    """[scored], the places in the token stream that predict them."""


class Rows(Protocol):
    """What a model reads, row by row, and what of it is scored."""

    def __len__(self) -> int: ...
    def lengths(self, numbers: Places) -> Places:
        """Tokens in each of the rows."""

    def batch(self, numbers: Places) -> Batch:
        """These rows, padded to the longest."""


class Processes(Protocol):
    """What is needed of the processes of a run, `llmkit.training.runtime.Processes`."""

    @property
    def rank(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def precision(self) -> str: ...
    def autocast(self) -> AbstractContextManager[None]: ...
    def sum(self, values: Tensor) -> Tensor: ...


@dataclass
class Scores:
    """What is kept of a measurement."""

    nll: NDArray[np.float64]
    """[stretches], the summed negative log-likelihoods in nats."""
    tokens: NDArray[np.int64]
    """[stretches], the scored tokens."""
    frequency: NDArray[np.int64]
    """[vocabulary], how often each id was scored."""
    shown: NDArray[np.float64]
    """[places], the negative log-likelihood at each of the first places; NaN where none is."""
    guesses: NDArray[np.int64]
    """[places], the likeliest id at each of the first places."""


def score(
    logits: ChosenLogits,
    rows: Rows,
    stretches: Stretches,
    processes: Processes,
    batch_tokens: int | None,
    watch: Watch,
    show: int = 0,
) -> Scores:
    """The scores of all rows, the same for any batch size and, to rounding, any number of
    processes; `show` keeps those of the first places.

    Raises DataError where the model gives no finite probability, ResourceError where one row does
    not fit the device.
    """
    n = len(stretches.begins)
    found = Scores(
        nll=np.zeros(n),
        tokens=np.zeros(n, np.int64),
        frequency=np.zeros(logits.vocab_size, np.int64),
        shown=np.zeros(show),
        guesses=np.zeros(show, np.int64),
    )
    scored = np.zeros(show, np.int64)
    with watch("scoring", len(rows)) as advance:
        for numbers in _shares(rows, logits, processes, batch_tokens):
            for places, targets, nll, guesses in _scored(logits, rows, numbers, processes, show):
                where = stretches.of(places)
                np.add.at(found.nll, where, nll)
                np.add.at(found.tokens, where, 1)
                np.add.at(found.frequency, targets, 1)
                early = places < show
                found.shown[places[early]] = nll[early]
                found.guesses[places[early]] = guesses[early] if show else 0
                scored[places[early]] = 1
            advance(min(len(numbers) * processes.count, len(rows)))
    for name, values in vars(found).items():
        setattr(found, name, _summed(values, processes))
    found.shown[_summed(scored, processes) == 0] = np.nan
    _check(found)
    return found


def _shares(
    rows: Rows, logits: ChosenLogits, processes: Processes, batch_tokens: int | None
) -> Iterator[Places]:
    """The rows of each batch of this process.

    Which rows form a batch does not hang on the number of processes, so none changes its numbers.
    """
    budget = batch_tokens or BATCH_TOKENS.get(processes.device.type, 4096)
    if not logits.is_split:
        budget = min(budget, 16 * logits.entries // logits.vocab_size)
    for first in range(0, len(rows), CHUNK):
        numbers = np.arange(first, min(first + CHUNK, len(rows)))
        batches = list(_batches(numbers, rows.lengths(numbers), budget))
        share = len(batches) / processes.count
        yield from batches[round(processes.rank * share) : round((processes.rank + 1) * share)]


def _batches(numbers: Places, lengths: Places, budget: int) -> Iterator[Places]:
    """Rows of like length together, the longest first, as many as the token budget holds."""
    order = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(order):
        count = max(1, budget // int(lengths[order[first]]))
        # In their own order: the text is then read forward.
        yield np.sort(numbers[order[first : first + count]])
        first += count


def _scored(
    logits: ChosenLogits, rows: Rows, numbers: Places, processes: Processes, show: int
) -> Iterator[tuple[Places, NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Places, targets, negative log-likelihoods and best guesses of some rows; rows that do not fit
    the device together are taken in halves."""
    batch = rows.batch(numbers)
    try:
        nll, guesses = _likelihood(logits, batch, processes, guess=show > 0)
    except torch.OutOfMemoryError as error:
        if len(numbers) == 1:
            raise ResourceError(
                f"one window of {batch.chosen.shape[1]} tokens does not fit the device",
                where="evaluation.window",
                next="write a smaller evaluation.window, or evaluation.precision=bf16",
            ) from error
        for half in np.array_split(numbers, 2):
            yield from _scored(logits, rows, half, processes, show)
        return
    yield batch.places, batch.targets.numpy(), nll, guesses


@torch.inference_mode()
def _likelihood(
    logits: ChosenLogits, batch: Batch, processes: Processes, guess: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    device = processes.device
    inputs = {name: values.to(device) for name, values in batch.inputs.items()}
    chosen, targets = batch.chosen.to(device), batch.targets.to(device)
    nll, guesses = [], []
    with processes.autocast():
        parts = logits.chunks(inputs, chosen)
        for some, wanted in zip(parts, torch.split(targets, logits.chunk), strict=True):
            nll.append(functional.cross_entropy(some.float(), wanted, reduction="none"))
            if guess:
                guesses.append(some.argmax(-1))
    joined = torch.cat(nll).double() if nll else torch.zeros(0, dtype=torch.float64)
    best = torch.cat(guesses) if guesses else torch.zeros(0, dtype=torch.int64)
    return joined.cpu().numpy(), best.cpu().numpy()


def _summed(values: NDArray[Any], processes: Processes) -> NDArray[Any]:
    return processes.sum(torch.from_numpy(values).to(processes.device)).cpu().numpy()


def _check(found: Scores) -> None:
    if not np.isfinite(found.nll).all():
        bad = int((~np.isfinite(found.nll)).sum())
        raise DataError(
            f"the model gives probabilities that are no numbers, in {bad} stretches of the text",
            where="model.name_or_path",
            next="evaluation.precision=fp32 if it was bf16; else the weights are damaged",
        )
