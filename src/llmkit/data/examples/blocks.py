"""Fixed-size blocks of a token stream, for causal and masked language models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.data.examples.order import scramble
from llmkit.data.text.token_file import TokenFile

UNSCORED = -100
"""The target of a position without a prediction."""


@dataclass(frozen=True)
class Blocks:
    """Examples of `block_size` tokens, without overlap, over the whole stream.

    Block k holds tokens kT to kT+T-1 and predicts tokens kT+1 to kT+T, so that each token except
    the first is predicted exactly once; the last block may be short. With `isolate_documents`
    documents do not attend to each other: positions restart at each document, and an opening id
    that differs from the closing id is not predicted.
    """

    tokens: TokenFile
    block_size: int
    isolate_documents: bool = True

    def __len__(self) -> int:
        return -(-(len(self.tokens.ids) - 1) // self.block_size)

    @property
    def n_bytes(self) -> int:
        """Number of UTF-8 bytes of the text in all blocks."""
        return self.tokens.n_bytes

    def count(self, rows: Sequence[int] | NDArray[np.int64]) -> int:
        """Number of predictions in these blocks."""
        first, last = self._bounds(np.asarray(rows, dtype=np.int64))
        counts = last - first
        if self._masks_openings:
            counts -= self._starts_before(last + 1) - self._starts_before(first + 1)
        return int(counts.sum())

    def longest_first(self) -> Sequence[int]:
        """All rows in order: they have the same length."""
        return range(len(self))

    def batch(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The blocks as tensors [rows, block_size]; row -1 is padding only.

        `input_ids` int64, padded with the closing id; `targets` int64, UNSCORED at positions
        without a prediction; `real` bool, False at padding, if there is any; and `position_ids`
        int64 if documents are isolated and one starts after the first column of a row.
        """
        first, last = self._bounds(np.asarray(rows, dtype=np.int64))
        places = first[:, None] + np.arange(self.block_size + 1)
        # Positions past the end of a row hold the closing id.
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
        """The first token of each row and its last target; equal for a row of padding."""
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
    """[rows, columns], the distance from the last start at or before each column."""
    columns = np.arange(starts.shape[1])
    return columns - np.maximum.accumulate(np.where(starts, columns, 0), axis=1)


KEPT, RANDOM = 0.1, 0.1
"""Shares of the predicted tokens that are kept and that are replaced by a random token; the rest is
masked (Devlin et al. 2019, arXiv 1810.04805, section 3.1)."""

_ROWS_AT_ONCE = 1024
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Vocabulary:
    """The properties of a tokenizer that masking needs."""

    mask_id: int
    pad_id: int
    special: NDArray[np.bool_]
    """[ids], whether a token is special: it is never masked nor used as a random replacement."""
    word_edges: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None
    """[ids] each, whether a token can continue the word before it, and whether it ends its word;
    None masks tokens rather than words."""

    @cached_property
    def ordinary(self) -> NDArray[np.int64]:
        """The ids that are not special."""
        return np.flatnonzero(~self.special)


@dataclass(frozen=True)
class MaskedBlocks:
    """Examples of `block_size` tokens over the whole stream, of which some are predicted.

    Block k holds tokens k(T-2) to (k+1)(T-2)-1 of the stream; a document cut by the block gets
    the opening or closing id that it lacks, so that every segment has both, and the rest of the T
    positions is padding. Rows count occurrences: row e·n+k is block k in epoch e. Each occurrence
    has different masks, which depend only on `seed` and row.
    """

    tokens: TokenFile
    block_size: int
    isolate_documents: bool
    probability: float
    vocabulary: Vocabulary
    seed: str
    """Different seeds give different masks."""

    def __len__(self) -> int:
        return -(-len(self.tokens.ids) // (self.block_size - 2))

    @property
    def most(self) -> int:
        """Maximum number of predictions in a block."""
        return max(1, round(self.probability * (self.block_size - 2)))

    @property
    def n_bytes(self) -> int:
        """Number of UTF-8 bytes of the text in all blocks."""
        return self.tokens.n_bytes

    @property
    def identity(self) -> tuple[object, ...]:
        """What the predictions depend on besides the text."""
        whole_words = self.vocabulary.word_edges is not None
        return self.block_size, self.isolate_documents, self.probability, whole_words

    @property
    def packed(self) -> bool:
        """Whether a block may hold several documents that must not attend to each other."""
        return self.isolate_documents and len(self.tokens.starts) > 1

    def count(self, rows: Sequence[int] | NDArray[np.int64]) -> int:
        """Number of predictions in these rows."""
        chosen = np.asarray(rows, dtype=np.int64)
        parts = np.split(chosen, range(_ROWS_AT_ONCE, len(chosen), _ROWS_AT_ONCE))
        return sum(int(self._predicted(part, self._framed(part)[0]).sum()) for part in parts)

    def longest_first(self) -> Sequence[int]:
        """All rows in order: they have the same length."""
        return range(len(self))

    def batch(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The blocks as int64 tensors; row -1 is padding only.

        `input_ids` [rows, block_size], masked; `places` [rows, most], the predicted columns, and
        `targets` [rows, most], their original ids, UNSCORED if a row has fewer. If documents are
        isolated, `documents` [rows, block_size], numbered in each row from 1, 0 for padding;
        otherwise `attention_mask` [rows, block_size] if there is padding.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        ids, lengths = self._framed(chosen)
        predicted = self._predicted(chosen, ids)
        places = np.argsort(~predicted, axis=1, kind="stable")[:, : self.most]
        scored = np.take_along_axis(predicted, places, axis=1)
        targets = np.where(scored, np.take_along_axis(ids, places, axis=1), UNSCORED)
        batch: dict[str, NDArray[Any]] = {
            "input_ids": ids.copy(),
            "places": np.where(scored, places, 0),
            "targets": targets,
        }
        row, slot = np.nonzero(scored)
        batch["input_ids"][row, places[row, slot]] = self._shown(chosen, targets)[row, slot]
        inside = np.arange(self.block_size) < lengths[:, None]
        if self.packed:
            documents = (ids == self.tokens.opening).cumsum(axis=1)
            batch["documents"] = np.where(inside, documents, 0)
        elif not inside.all():
            inside[:, 0] = True  # attention to nothing gives NaN
            batch["attention_mask"] = inside
        return {name: torch.from_numpy(value.astype(np.int64)) for name, value in batch.items()}

    def _framed(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens [rows, block_size] before masking, and the number in each row."""
        if len(rows) and rows.min() < -1:
            raise IndexError(f"there is no row {rows.min()}")
        size, stream = self.block_size - 2, self.tokens
        first = rows % len(self) * size
        last = np.minimum(first + size, len(stream.ids)) - 1
        unopened = stream.ids[first] != stream.opening
        unclosed = stream.ids[last] != stream.closing
        lengths = np.where(rows < 0, 0, last - first + 1 + unopened + unclosed)
        columns = np.arange(self.block_size)
        places = first[:, None] + columns - unopened[:, None]  # in the stream
        ids = stream.ids[np.minimum(places, last[:, None])].astype(np.int64)
        ids[unopened, 0] = stream.opening
        ids[places > last[:, None]] = stream.closing
        ids[columns >= lengths[:, None]] = self.vocabulary.pad_id
        return ids, lengths

    def _predicted(self, rows: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[rows, block_size], whether each token is predicted: the fraction `probability` of each
        row, at least one token; with whole-word masking, only words that fit."""
        open_to_it = ~self.vocabulary.special[ids]
        keys = self._draws(rows, "which", self.block_size)
        if self.vocabulary.word_edges is not None:
            continues, closes = self.vocabulary.word_edges
            begins = ~continues[ids]
            # A token after a special token always begins a word.
            begins[:, 1:] |= (~open_to_it | closes[ids])[:, :-1]
            columns = np.arange(self.block_size)
            word = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
            keys = np.take_along_axis(keys, word, axis=1)
        keys[~open_to_it] = np.iinfo(np.uint64).max
        n_open = open_to_it.sum(axis=1)
        wanted = np.maximum(1, np.rint(self.probability * n_open).astype(np.int64))
        # The first key beyond the budget; a word that would be cut there is skipped.
        limits = np.take_along_axis(np.sort(keys, axis=1), wanted[:, None], axis=1)
        return (keys < limits) & open_to_it

    def _shown(self, rows: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """[rows, most], the input ids at predicted positions: the mask, random or original ids."""
        kind = self._draws(rows, "how", self.most) / 2.0**64
        others = self.vocabulary.ordinary
        other = others[self._draws(rows, "what", self.most) % np.uint64(len(others))]
        shown = np.where(kind < 1 - KEPT - RANDOM, self.vocabulary.mask_id, targets)
        return np.where(kind >= 1 - RANDOM, other, shown)

    def _draws(self, rows: NDArray[np.int64], what: str, n: int) -> NDArray[np.uint64]:
        """[rows, n] 64-bit random numbers, a pure function of seed and row (SplitMix64, Steele et
        al. 2014, restarted for each row)."""
        digest = hashlib.blake2b(f"{self.seed}/{what}".encode(), digest_size=8).digest()
        key = np.uint64(int.from_bytes(digest, "little"))
        begin = scramble(rows.astype(np.uint64) ^ key)[:, None]
        return scramble(begin + np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN)
