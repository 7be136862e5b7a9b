"""How likely a model finds each token: sums of negative log-likelihoods over segments of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from llmkit.distributed.processes import Processes
from llmkit.errors import DataError, ResourceError
from llmkit.evaluation.segments import Segments
from llmkit.evaluation.windows import Places
from llmkit.models.logits import ChosenLogits
from llmkit.progress import Watch

CHUNK = 4096
"""Rows that are sorted by length together."""

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens in a batch when none are asked for; more is not faster."""


class Batch(NamedTuple):
    """Rows of one width for a model."""

    inputs: dict[str, Tensor]
    """`input_ids` int64 [rows, width], and either `real`, a bool that is False at padding, or
    `attention_mask` where the model looks at padding."""
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


class Found(NamedTuple):
    """What a batch gave: an entry for each place that was scored."""

    places: Places
    targets: Places
    nll: NDArray[np.float64]
    """Negative log-likelihoods in nats."""
    guesses: Places
    """The likeliest ids; empty where nobody asked for them."""


@dataclass(frozen=True)
class Scores:
    """What is kept of a measurement."""

    nll: NDArray[np.float64]
    """[segments], the summed negative log-likelihoods in nats."""
    tokens: NDArray[np.int64]
    """[segments], the scored tokens."""
    frequency: NDArray[np.int64]
    """[vocabulary], how often each id was scored."""
    shown: NDArray[np.float64]
    """[places], the negative log-likelihood at each of the first places; -1 where none is."""
    guesses: NDArray[np.int64]
    """[places], the likeliest id at each of the first places."""

    @classmethod
    def empty(cls, segments: int, vocabulary: int, show: int) -> Scores:
        """Those of no token."""
        counts = (np.zeros(size, np.int64) for size in (segments, vocabulary, show))
        tokens, frequency, guesses = counts
        return cls(np.zeros(segments), tokens, frequency, np.full(show, -1.0), guesses)

    def add(self, found: Found, segments: Segments) -> None:
        """Takes in what a batch gave."""
        where = segments.of(found.places)
        np.add.at(self.nll, where, found.nll)
        np.add.at(self.tokens, where, 1)
        np.add.at(self.frequency, found.targets, 1)
        if len(self.shown):
            early = found.places < len(self.shown)
            self.shown[found.places[early]] = found.nll[early]
            self.guesses[found.places[early]] = found.guesses[early]

    def over_all(self, processes: Processes) -> Scores:
        """The scores of all processes together."""
        mine = (torch.from_numpy(each).to(processes.device) for each in vars(self).values())
        sums = Scores(*(processes.sum(each).cpu().numpy() for each in mine))
        # Of the processes, all but at most one have -1 at a place.
        return replace(sums, shown=sums.shown + (processes.count - 1))


def score(
    logits: ChosenLogits,
    rows: Rows,
    segments: Segments,
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
    scores = Scores.empty(len(segments.begins), logits.vocab_size, show)
    with watch("scoring", len(rows)) as advance:
        for numbers in _shares(rows, logits, processes, batch_tokens):
            for found in _scored(logits, rows, numbers, processes, guess=show > 0):
                scores.add(found, segments)
            advance(min(len(numbers) * processes.count, len(rows)))
    scores = scores.over_all(processes)
    _check(scores)
    return scores


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
    logits: ChosenLogits, rows: Rows, numbers: Places, processes: Processes, guess: bool
) -> Iterator[Found]:
    """What some rows give; rows that do not fit the device together are taken in halves."""
    batch = rows.batch(numbers)
    if not len(batch.places):
        return
    try:
        nll, guesses = _likelihood(logits, batch, processes, guess)
    except torch.OutOfMemoryError as error:
        if len(numbers) == 1:
            raise ResourceError(
                f"one window of {batch.chosen.shape[1]} tokens does not fit the device",
                where="evaluation.window",
                next="write a smaller evaluation.window, or evaluation.precision=bf16",
            ) from error
    else:
        yield Found(batch.places, batch.targets.numpy(), nll, guesses)
        return
    for half in np.array_split(numbers, 2):
        yield from _scored(logits, rows, half, processes, guess)


@torch.inference_mode()
def _likelihood(
    logits: ChosenLogits, batch: Batch, processes: Processes, guess: bool
) -> tuple[NDArray[np.float64], Places]:
    device = processes.device
    inputs = {name: values.to(device) for name, values in batch.inputs.items()}
    chosen, targets = batch.chosen.to(device), batch.targets.to(device)
    nll, guesses = [], [torch.zeros(0, dtype=torch.int64, device=device)]
    with processes.autocast():
        parts = logits.chunks(inputs, chosen)
        for some, wanted in zip(parts, torch.split(targets, logits.chunk), strict=True):
            nll.append(functional.cross_entropy(some.float(), wanted, reduction="none"))
            if guess:
                guesses.append(some.argmax(-1))
    return torch.cat(nll).double().cpu().numpy(), torch.cat(guesses).cpu().numpy()


def _check(scores: Scores) -> None:
    if not scores.tokens.sum():
        raise DataError(
            "no token of the text is scored",
            where="data.test_files",
            next="name text that the model's tokenizer can write",
        )
    if not np.isfinite(scores.nll).all():
        bad = int((~np.isfinite(scores.nll)).sum())
        raise DataError(
            f"the model gives probabilities that are no numbers, in {bad} segments of the text",
            where="model.name_or_path",
            next="evaluation.precision=fp32 if it was bf16; else the weights are damaged",
        )
