"""Blocks of a token stream with spans to predict, for pretraining of encoder-decoder models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmkit.data.examples.blocks import UNSCORED
from llmkit.data.examples.order import scramble
from llmkit.data.text.token_file import TokenFile

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

_Rows = Sequence[int] | NDArray[np.int64]
_Ids = NDArray[np.int64]


@dataclass(frozen=True)
class CorruptedBlocks:
    """Examples of `block_size` tokens over the whole stream, whose spans are predicted (Raffel et
    al. 2020, arXiv 1910.10683, section 3.1.4).

    A share `noise_density` of the tokens of a block, in spans of `mean_span_length` on average, is
    replaced by one sentinel for each span; the target holds each sentinel with its span, and both
    sides end with `end_id`. Rows count occurrences: row e·n+k is block k in epoch e. The spans of
    an occurrence depend only on `seed` and row.
    """

    tokens: TokenFile
    block_size: int
    noise_density: float
    mean_span_length: float
    sentinels: tuple[int, ...]
    """Ids in the order in which they replace the spans of a block."""
    end_id: int
    pad_id: int
    shift: Callable[[Tensor], Tensor]
    """Target ids -> what the decoder reads to predict them, as `shift_of` makes it."""
    seed: str
    """Different seeds give different spans."""

    def __len__(self) -> int:
        return -(-len(self.tokens.ids) // self.block_size)

    @property
    def n_bytes(self) -> int:
        """Number of UTF-8 bytes of the text in all blocks."""
        return self.tokens.n_bytes

    @property
    def identity(self) -> tuple[object, ...]:
        """What the predictions depend on besides the text."""
        return self.block_size, self.noise_density, self.mean_span_length

    def count(self, rows: _Rows) -> int:
        """Number of predictions in these rows: noise, sentinels and ends."""
        chosen = np.asarray(rows, dtype=np.int64)
        lengths = self._lengths(chosen[chosen >= 0])
        found = (self._noise(int(length)) for length in lengths)
        return sum(noise + spans + 1 for noise, spans in found)

    def longest_first(self) -> Sequence[int]:
        """All rows in order: they have the same length."""
        return range(len(self))

    def batch(self, rows: _Rows) -> dict[str, torch.Tensor]:
        """The rows as int64 tensors, padded on the right, in the form of `PairedExamples.batch`;
        row -1 has no predictions."""
        chosen = np.asarray(rows, dtype=np.int64)
        if len(chosen) and chosen.min() < -1:
            raise IndexError(f"there is no row {chosen.min()}")
        pairs = [self.corrupted(int(max(0, row))) for row in chosen]
        sources = _padded([source for source, _ in pairs], self.pad_id)
        targets = _padded([target for _, target in pairs], UNSCORED)
        read = _padded([np.ones_like(source) for source, _ in pairs], 0)
        labels = torch.from_numpy(targets)
        return {
            "input_ids": torch.from_numpy(sources),
            "attention_mask": torch.from_numpy(read),
            "decoder_input_ids": self.shift(labels),
            "targets": labels.masked_fill(torch.from_numpy(chosen < 0)[:, None], UNSCORED),
        }

    def corrupted(self, row: int) -> tuple[_Ids, _Ids]:
        """The source and the target ids of an occurrence."""
        first = row % len(self) * self.block_size
        ids = self.tokens.ids[first : first + self.block_size].astype(np.int64)
        noise, spans = self._noise(len(ids))
        lengths = np.empty(2 * spans, np.int64)
        lengths[::2] = self._divided(row, "kept", len(ids) - noise, spans)
        lengths[1::2] = self._divided(row, "noise", noise, spans)
        ends = np.cumsum(lengths)
        source, target = list[_Ids](), list[_Ids]()
        for number, sentinel in enumerate(self.sentinels[:spans]):
            start, stop = ends[2 * number], ends[2 * number + 1]
            kept = ids[start - lengths[2 * number] : start]
            source += [kept, np.array([sentinel])]
            target += [np.array([sentinel]), ids[start:stop]]
        end = np.array([self.end_id])
        return np.concatenate([*source, end]), np.concatenate([*target, end])

    def _noise(self, length: int) -> tuple[int, int]:
        """The number of tokens to predict in a block, and that of their spans; at least one token
        is kept before each span, as in T5's code."""
        noise = min(max(round(length * self.noise_density), 1), max(1, length - 1))
        spans = max(1, round(noise / self.mean_span_length))
        return noise, min(spans, noise, max(1, length - noise), len(self.sentinels))

    def _divided(self, row: int, what: str, n: int, parts: int) -> _Ids:
        """`n` as a sum of `parts` positive numbers, each sum equally likely."""
        if parts > n:
            return np.array([n], np.int64)
        digest = hashlib.blake2b(f"{self.seed}/{what}".encode(), digest_size=8).digest()
        key = np.uint64(int.from_bytes(digest, "little"))
        begin = scramble(np.array([row], np.uint64) ^ key)
        draws = scramble(begin + np.arange(1, n, dtype=np.uint64) * _GOLDEN)
        cuts = np.sort(np.argsort(draws, kind="stable")[: parts - 1]) + 1
        return np.diff(np.concatenate([[0], cuts, [n]])).astype(np.int64)

    def _lengths(self, rows: _Ids) -> _Ids:
        """[rows], the number of tokens of each block."""
        first = rows % len(self) * self.block_size
        return np.minimum(self.block_size, len(self.tokens.ids) - first)


def _padded(rows: Sequence[_Ids], fill: int) -> _Ids:
    found = np.full((len(rows), max(map(len, rows), default=1)), fill, np.int64)
    for number, ids in enumerate(rows):
        found[number, : len(ids)] = ids
    return found
