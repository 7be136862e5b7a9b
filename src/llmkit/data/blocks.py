"""Fixed blocks of a token stream as the examples of a causal model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.data.tokens import TokenFile

UNSCORED = -100
"""The target of a place where nothing is predicted."""


@dataclass(frozen=True)
class Blocks:
    """Examples of `block_size` tokens, without overlap, over the whole stream.

    Block k holds tokens kT to kT+T-1 and predicts tokens kT+1 to kT+T, so that each token but the
    first is predicted exactly once; the last block may be short. With `isolate_documents` no
    document sees another: positions begin anew at each document, and where documents have an
    opening id of their own, it is not predicted.
    """

    tokens: TokenFile
    block_size: int
    isolate_documents: bool = True

    def __len__(self) -> int:
        return -(-(len(self.tokens.ids) - 1) // self.block_size)

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of the text in all blocks together."""
        return self.tokens.n_bytes

    def count(self, rows: Sequence[int] | NDArray[np.int64]) -> int:
        """Predictions scored in these blocks."""
        first, last = self._bounds(np.asarray(rows, dtype=np.int64))
        counts = last - first
        if self._masks_openings:
            counts -= self._starts_before(last + 1) - self._starts_before(first + 1)
        return int(counts.sum())

    def longest_first(self) -> Sequence[int]:
        """All rows in their order: they are equally long."""
        return range(len(self))

    def batch(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The blocks as tensors [rows, block_size]; row -1 is all padding.

        `input_ids` int64, padded with the closing id; `targets` int64, UNSCORED where nothing is
        predicted; `real` bool, False at padding, if there is any; and `position_ids` int64 if
        documents are isolated and one starts after the first column of a row.
        """
        first, last = self._bounds(np.asarray(rows, dtype=np.int64))
        places = first[:, None] + np.arange(self.block_size + 1)
        # Past the end of a row nothing is read: those places hold the closing id.
        inside = places <= last[:, None]
        inside[first == last] = False
        tokens = np.full(places.shape, self.tokens.closing, dtype=np.int64)
        tokens[inside] = self.tokens.ids[places[inside]]
        starts = self._document_starts(first, last) if self.isolate_documents else None
        targets = np.where(inside[:, 1:], tokens[:, 1:], UNSCORED)
        if starts is not None and self._masks_openings:
            targets[starts[:, 1:]] = UNSCORED
        batch = {"input_ids": tokens[:, :-1], "targets": targets}
        real = places[:, :-1] < last[:, None]
        if not real.all():
            batch["real"] = real
        if starts is not None and starts[:, 1:-1].any():
            batch["position_ids"] = _positions(starts[:, :-1])
        return {name: torch.from_numpy(np.ascontiguousarray(batch[name])) for name in batch}

    @property
    def _masks_openings(self) -> bool:
        return self.isolate_documents and self.tokens.opening != self.tokens.closing

    def _bounds(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first token of each row and its last target; the same for a row of padding."""
        if len(rows) and (rows.min() < -1 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)} blocks")
        first = np.maximum(rows, 0) * self.block_size
        last = np.minimum(first + self.block_size, len(self.tokens.ids) - 1)
        return first, np.where(rows < 0, first, last)

    def _starts_before(self, places: NDArray[np.int64]) -> NDArray[Any]:
        return np.searchsorted(self.tokens.starts, places)

    def _document_starts(
        self, first: NDArray[np.int64], last: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """[rows, block_size + 1], whether a document starts there."""
        starts = np.zeros((len(first), self.block_size + 1), dtype=np.bool_)
        begin, end = self._starts_before(first), self._starts_before(last + 1)
        for row in np.flatnonzero((begin < end) & (first < last)):
            starts[row, self.tokens.starts[begin[row] : end[row]] - first[row]] = True
        return starts


def _positions(starts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[rows, columns], counted from the last start at or before each column."""
    columns = np.arange(starts.shape[1])
    return columns - np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
