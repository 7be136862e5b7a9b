"""Labels the texts of many requests together, in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmkit.data.examples.encoded import Encoded
from llmkit.serving.engines.batch_engine import BatchEngine, BatchRows
from llmkit.serving.engines.jobs import LabelJob

_SPREAD, _ABOVE = 1.25, 8
"""The longest text of a batch has at most this many times the tokens of its shortest, or this many
more."""


class Labeller(Protocol):
    """A model that labels rows."""

    @property
    def batch_tokens(self) -> int:
        """Number of tokens of a batch that keeps the device busy."""

    def of_batch(self, batch: Mapping[str, Tensor]) -> NDArray[np.float32]:
        """The outputs [rows, ...] of a padded batch."""


class LabelEngine(BatchEngine[LabelJob]):
    """A classifier, a tagger or a model that answers questions.

    In fp32, probabilities agree with those of `llmkit predict` up to rounding: `predict` fills each
    batch to a fixed size, which costs a single text as much time as a full batch.
    """

    at_once = 512

    def __init__(self, labeller: Labeller) -> None:
        super().__init__()
        self.labeller = labeller

    def size(self, job: LabelJob) -> int:
        """Number of texts, or of their windows."""
        return len(job.encoded)

    def plan(self, jobs: Sequence[LabelJob]) -> Iterator[BatchRows]:
        """Batches of similar length."""
        self._encoded = Encoded.joined([job.encoded for job in jobs])
        return batches_by_length(self._encoded.lengths, self.labeller.batch_tokens)

    def compute(self, rows: list[int]) -> NDArray[np.float32]:
        """The outputs of the model."""
        return self.labeller.of_batch(self._encoded.batch(rows))

    def keep(self, job: LabelJob, row: int, result: Any) -> None:
        """Passes the outputs of a row on to its job."""
        job.keep(row, result)


def batches_by_length(lengths: NDArray[np.int64], tokens: int) -> Iterator[BatchRows]:
    """Rows in batches of similar length, shortest first, each of at most `tokens` with padding if
    it has several rows."""
    order = np.argsort(lengths, kind="stable")
    first = 0
    while first < len(order):
        shortest = int(lengths[order[first]])
        limit = max(shortest * _SPREAD, shortest + _ABOVE)
        last = first + 1
        while last < len(order):
            length = int(lengths[order[last]])
            if length > limit or (last + 1 - first) * length > tokens:
                break
            last += 1
        yield order[first:last]
        first = last
