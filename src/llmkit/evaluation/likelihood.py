"""The likelihood of text: negative log-likelihoods summed over segments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from llmkit.data.text.token_file import Places
from llmkit.distributed.processes import Processes
from llmkit.errors import DataError, ResourceError
from llmkit.evaluation.segments import Segments
from llmkit.models.logits import ChosenLogits
from llmkit.progress import Watch

SORTED_ROWS = 4096
"""Rows that are sorted by length together."""

SCORING_BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Default tokens per batch, by device; more is not faster."""


class ScoringBatch(NamedTuple):
    """Rows of equal width, ready for a model."""

    inputs: dict[str, Tensor]
    """`input_ids` int64 [rows, width], and either `real`, a bool that is False at padding, or
    `attention_mask` for a model that attends to padding."""
    chosen: Tensor
    """bool [rows, width], the scored positions."""
    targets: Tensor
    """int64 [scored], the target ids at these positions, in reading order."""
    places: Places
    """[scored], the places in the token stream that predict them."""


class RowsToScore(Protocol):
    """The rows that a model reads, and which of their tokens are scored."""

    def __len__(self) -> int: ...
    def lengths(self, numbers: Places) -> Places:
        """Tokens in each of the rows."""

    def batch(self, numbers: Places) -> ScoringBatch:
        """These rows, padded to the longest."""


class Found(NamedTuple):
    """The results of a batch, one entry for each scored place."""

    places: Places
    targets: Places
    nll: NDArray[np.float64]
    """Negative log-likelihoods in nats."""
    guesses: Places
    """The most likely ids; empty unless requested."""


@dataclass(frozen=True)
class Scores:
    """Sums over segments, and token scores for the first places of the text."""

    nll: NDArray[np.float64]
    """[segments], the summed negative log-likelihoods in nats."""
    tokens: NDArray[np.int64]
    """[segments], the scored tokens."""
    frequency: NDArray[np.int64]
    """[vocabulary], how often each id was scored."""
    token_nll: NDArray[np.float64]
    """[places], the negative log-likelihood at each of the first places; -1 if not scored."""
    guesses: NDArray[np.int64]
    """[places], the most likely id at each of the first places."""

    @classmethod
    def empty(cls, segments: int, vocabulary: int, keep: int) -> Scores:
        """Scores of no tokens."""
        counts = (np.zeros(size, np.int64) for size in (segments, vocabulary, keep))
        tokens, frequency, guesses = counts
        return cls(np.zeros(segments), tokens, frequency, np.full(keep, -1.0), guesses)

    def add(self, found: Found, segments: Segments) -> None:
        """Adds the results of a batch."""
        where = segments.of(found.places)
        np.add.at(self.nll, where, found.nll)
        np.add.at(self.tokens, where, 1)
        np.add.at(self.frequency, found.targets, 1)
        if len(self.token_nll):
            early = found.places < len(self.token_nll)
            self.token_nll[found.places[early]] = found.nll[early]
            self.guesses[found.places[early]] = found.guesses[early]

    def over_all(self, processes: Processes) -> Scores:
        """The scores summed over all processes."""
        mine = (torch.from_numpy(each).to(processes.device) for each in vars(self).values())
        sums = Scores(*(processes.sum(each).cpu().numpy() for each in mine))
        # At each place, at most one process has a score; all others have -1.
        return replace(sums, token_nll=sums.token_nll + (processes.count - 1))


def score_rows(
    logits: ChosenLogits,
    rows: RowsToScore,
    segments: Segments,
    processes: Processes,
    batch_tokens: int | None,
    watch: Watch,
    keep: int = 0,
) -> Scores:
    """Scores all rows; also keeps the token scores of the first `keep` places.

    The result is the same for any batch size and, up to rounding, any number of processes. Raises
    DataError if a likelihood is NaN or infinite, ResourceError if a single row does not fit the
    device.
    """
    scores = Scores.empty(len(segments.begins), logits.vocab_size, keep)
    with watch("scoring", len(rows)) as advance:
        for numbers in own_batches(rows, logits, processes, batch_tokens):
            for found in _scored(logits, rows, numbers, processes, guess=keep > 0):
                scores.add(found, segments)
            advance(min(len(numbers) * processes.count, len(rows)))
    scores = scores.over_all(processes)
    _check(scores)
    return scores


def batch_tokens_for(logits: ChosenLogits, asked: int | None = None) -> int:
    """Tokens of a batch; fewer by default for a model whose logits are all computed."""
    budget = asked or SCORING_BATCH_TOKENS.get(logits.model.device.type, 4096)
    return budget if logits.is_split else min(budget, 16 * logits.entries // logits.vocab_size)


def own_batches(
    rows: RowsToScore, logits: ChosenLogits, processes: Processes, batch_tokens: int | None
) -> Iterator[Places]:
    """The rows of each batch of this process.

    Batches do not depend on the number of processes, so neither do the numbers.
    """
    budget = batch_tokens_for(logits, batch_tokens)
    for first in range(0, len(rows), SORTED_ROWS):
        numbers = np.arange(first, min(first + SORTED_ROWS, len(rows)))
        batches = list(_batches(numbers, rows.lengths(numbers), budget))
        share = len(batches) / processes.count
        yield from batches[round(processes.rank * share) : round((processes.rank + 1) * share)]


def _batches(numbers: Places, lengths: Places, budget: int) -> Iterator[Places]:
    """Batches of rows of similar length, the longest first, within the token budget."""
    order = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(order):
        count = max(1, budget // int(lengths[order[first]]))
        # Sorted by number, so that the text is read forward.
        yield np.sort(numbers[order[first : first + count]])
        first += count


def _scored(
    logits: ChosenLogits, rows: RowsToScore, numbers: Places, processes: Processes, guess: bool
) -> Iterator[Found]:
    """Scores some rows; halves the batch if it does not fit the device."""
    batch = rows.batch(numbers)
    if not len(batch.places):
        return
    try:
        nll, guesses = _likelihood(logits, batch, processes, guess)
    except torch.OutOfMemoryError as error:
        # Processes that share one model must compute the same batches.
        if len(numbers) == 1 or processes.one_model:
            raise ResourceError(
                f"a window of {batch.chosen.shape[1]} tokens does not fit the device",
                where="evaluation.window",
                next="reduce evaluation.window, or set evaluation.precision=bf16",
            ) from error
    else:
        yield Found(batch.places, batch.targets.numpy(), nll, guesses)
        return
    for half in np.array_split(numbers, 2):
        yield from _scored(logits, rows, half, processes, guess)


@torch.inference_mode()
def _likelihood(
    logits: ChosenLogits, batch: ScoringBatch, processes: Processes, guess: bool
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
            next="name text that the model's tokenizer can encode",
        )
    if not np.isfinite(scores.nll).all():
        bad = int((~np.isfinite(scores.nll)).sum())
        raise DataError(
            f"the model's likelihoods are NaN or infinite in {bad} segments of the text",
            where="model.name_or_path",
            next="set evaluation.precision=fp32 if it is bf16; otherwise the weights are damaged",
        )
