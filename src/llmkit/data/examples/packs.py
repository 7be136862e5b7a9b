"""Encode conversations, mark the assistant's tokens as targets, and pack them into rows."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from llmkit.data.examples.blocks import UNSCORED
from llmkit.data.examples.encoded import length_report
from llmkit.models.control_tokens import control_tokens, renamed

_TEXTS_AT_ONCE = 1024

_Parts = Sequence[str]
"""The text of a conversation, alternately what the assistant reads and what it writes."""


@dataclass(frozen=True)
class Responses:
    """Concatenated token ids of conversations, without those truncated before any response."""

    ids: NDArray[np.int32]
    scored: NDArray[np.bool_]
    """[tokens], whether each is predicted; the first token of a conversation never is."""
    starts: NDArray[np.int64]
    """[conversations + 1]"""
    uncut: NDArray[np.int64]
    """Number of tokens of each given text before truncation."""
    left_out: tuple[int, ...]
    """Rows whose whole response was truncated."""
    parted: int
    """Texts in which a token would span the end of a prompt and the beginning of its response; the
    two were tokenized separately."""
    max_length: int

    lacking = "the whole response truncated"
    """What is wrong with the rows that are skipped."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[conversations], in tokens."""
        return np.diff(self.starts)

    def part(self, chosen: NDArray[np.int64]) -> Responses:
        """The conversations of these numbers, in this order."""
        whole = zip(self.starts[chosen], self.starts[chosen + 1], strict=True)
        spans = [np.arange(start, end) for start, end in whole]
        places = np.concatenate([np.zeros(0, np.int64), *spans])
        return replace(
            self,
            ids=self.ids[places],
            scored=self.scored[places],
            starts=np.cumsum([0, *self.lengths[chosen]], dtype=np.int64),
        )

    @property
    def fingerprint(self) -> str:
        """The sha256 of the ids and of which are predicted."""
        whole = hashlib.sha256(self.ids.tobytes())
        whole.update(self.scored.tobytes())
        whole.update(self.starts.tobytes())
        return whole.hexdigest()

    def report(self) -> dict[str, Any]:
        """Percentiles of lengths before truncation, the truncated share, and predicted tokens."""
        return {
            **length_report(self.uncut, np.minimum(self.uncut, self.max_length)),
            "tokens": len(self.ids),
            "predicted": int(self.scored.sum()),
            "parted": self.parted,
        }


def encode_responses(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[_Parts],
    max_length: int,
    rows: Sequence[int] | None = None,
    advance: Callable[[int], None] = lambda n_rows: None,
) -> Responses:
    """Encode conversations, truncated to `max_length` tokens.

    `rows` gives the conversation of each text if one may have several. The ids before a response
    equal those of the prompt alone, which the model reads at inference.
    """
    encoder = _Encoder(tokenizer)
    ids: list[Sequence[int]] = []
    scored: list[NDArray[np.bool_]] = []
    uncut, left_out = [], []
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[first : first + _TEXTS_AT_ONCE]
        for number, (tokens, bounds) in enumerate(encoder.encode(some), first):
            marks = _marks(bounds)[:max_length]
            uncut.append(len(tokens))
            if marks.any():
                ids.append(tokens[:max_length])
                scored.append(marks)
            else:
                left_out.append(number if rows is None else rows[number])
        advance(len(some))
    return Responses(
        ids=np.fromiter(chain.from_iterable(ids), dtype=np.int32),
        scored=np.concatenate([*scored, np.zeros(0, np.bool_)]),
        starts=np.cumsum([0, *map(len, ids)], dtype=np.int64),
        uncut=np.array(uncut, dtype=np.int64),
        left_out=tuple(dict.fromkeys(left_out)),
        parted=encoder.parted,
        max_length=max_length,
    )


def _marks(bounds: Sequence[int]) -> NDArray[np.bool_]:
    """[tokens], whether each belongs to the second, fourth, ... of the parts that end at these
    bounds; the first token has no context and is not predicted."""
    lengths = np.diff(bounds, prepend=0)
    marks = np.repeat(np.arange(len(bounds)) % 2 == 1, lengths)
    marks[:1] = False
    return marks


class _Encoder:
    """Encodes texts, and finds where each part of a text ends among the ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.control = control_tokens(tokenizer)
        self.backend = renamed(tokenizer)
        self.parted = 0

    def encode(self, some: Sequence[_Parts]) -> list[tuple[list[int], list[int]]]:
        wholes = self._ids(["".join(parts) for parts in some])
        pieces = iter(self._ids(list(chain.from_iterable(some))))
        return [
            self._one(parts, whole, [next(pieces) for _ in parts])
            for parts, whole in zip(some, wholes, strict=True)
        ]

    def _one(
        self, parts: _Parts, whole: list[int], pieces: list[list[int]]
    ) -> tuple[list[int], list[int]]:
        """The ids of a text and the ends of its parts, given the ids of each part alone."""
        together = list(chain.from_iterable(pieces))
        bounds = list(accumulate(map(len, pieces)))
        if together == whole:
            return whole, bounds
        # A part alone may begin differently than after another: SentencePiece adds a space.
        beginnings = self._ids(list(accumulate(parts)))
        if all(whole[: len(ids)] == ids for ids in beginnings):
            return whole, list(map(len, beginnings))
        self.parted += 1
        return together, bounds

    def _ids(self, texts: list[str]) -> list[list[int]]:
        placed = [self.control.placed(text) for text in texts]
        encodings = self.backend.encode_batch_fast(placed, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


_Rows = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class Packs:
    """Rows of one or more whole conversations that do not attend to each other.

    Positions restart at each conversation, and none predicts a token of the next.
    """

    ids: NDArray[np.int32]
    scored: NDArray[np.bool_]
    """[tokens], whether each is predicted."""
    starts: NDArray[np.int64]
    """[conversations + 1], the start of each conversation, pack by pack."""
    numbers: NDArray[np.int64]
    """[conversations], the number that each has among the responses."""
    bounds: NDArray[np.int64]
    """[packs + 1], the start of each pack."""
    width: int | None
    """Tokens per row; None pads to the longest row of a batch."""
    pad_id: int

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[packs], in tokens."""
        return np.diff(self.bounds)

    @property
    def n_predictions(self) -> int:
        """Number of predictions in all rows."""
        return int(self.scored.sum())

    def count(self, rows: _Rows) -> int:
        """Number of predictions in these rows."""
        chosen = np.asarray(rows, dtype=np.int64)
        return int(self._counts[chosen[chosen >= 0]].sum())

    def longest_first(self) -> _Rows:
        """All rows by decreasing length."""
        return np.argsort(-self.lengths, kind="stable")

    def batch(self, rows: _Rows) -> dict[str, torch.Tensor]:
        """The rows as tensors [rows, width]; row -1 is padding only.

        `input_ids` int64, padded on the right; `targets` int64, UNSCORED at positions without a
        prediction; `places` [predictions] int64, the predicted positions, counted over all rows;
        `real` bool, False at padding, if there is any; and `position_ids` int64 if a row holds
        several conversations.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        first = self.bounds[chosen]
        lengths = np.where(chosen < 0, 0, self.lengths[chosen])
        columns = np.arange(self.width or max(1, int(lengths.max(initial=0))))
        inside = columns < lengths[:, None]  # [rows, width]
        tokens = (first[:, None] + columns)[inside]
        ids = np.full(inside.shape, self.pad_id, dtype=np.int64)
        ids[inside] = self.ids[tokens]
        scored = np.zeros(inside.shape, dtype=np.bool_)
        scored[inside] = self.scored[tokens]
        targets = np.full(inside.shape, UNSCORED, dtype=np.int64)
        targets[:, :-1] = np.where(scored, ids, UNSCORED)[:, 1:]
        places = np.flatnonzero(targets != UNSCORED)
        batch: dict[str, NDArray[Any]] = {"input_ids": ids, "targets": targets, "places": places}
        if not inside.all():
            batch["real"] = inside
        begins = np.zeros(inside.shape, dtype=np.bool_)
        begins[inside] = self._begins[tokens]
        if begins[:, 1:].any():
            latest = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
            batch["position_ids"] = columns - latest
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        """[packs], the number of predictions of each."""
        before = np.concatenate([[0], np.cumsum(self.scored)])
        return np.diff(before[self.bounds])

    @cached_property
    def _begins(self) -> NDArray[np.bool_]:
        """[tokens], whether a conversation begins at each."""
        begins = np.zeros(len(self.ids), dtype=np.bool_)
        begins[self.starts[:-1]] = True
        return begins


def packed(responses: Responses, width: int, pad_id: int) -> Packs:
    """Rows of `width` tokens, each filled with as many whole conversations as fit."""
    return _arranged(responses, fill(responses.lengths, width), width, pad_id)


def alone(responses: Responses, pad_id: int) -> Packs:
    """One row per conversation, padded to the longest of a batch."""
    return _arranged(responses, [[row] for row in range(len(responses))], None, pad_id)


def fill(lengths: NDArray[np.int64], size: int) -> list[list[int]]:
    """Group items into packs of at most `size`: by decreasing length, each item goes where it
    leaves the least room (best fit decreasing, Johnson et al. 1974)."""
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # packs that are not full, by remaining room
    shortest = int(lengths.min(initial=size))
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        place = bisect_left(rooms, (length, -1))
        if place == len(rooms):
            room, number = size, len(packs)
            packs.append([])
        else:
            room, number = rooms.pop(place)
        packs[number].append(row)
        if room - length >= shortest:
            insort(rooms, (room - length, number))
    return packs


def _arranged(
    responses: Responses, packs: list[list[int]], width: int | None, pad_id: int
) -> Packs:
    order = np.fromiter(chain.from_iterable(packs), dtype=np.int64)
    lengths = responses.lengths[order]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    sizes = np.cumsum([0, *map(len, packs)])
    # Token k of a conversation moves to the new start of the conversation, plus k.
    places = np.repeat(responses.starts[order] - starts[:-1], lengths) + np.arange(starts[-1])
    return Packs(
        ids=responses.ids[places],
        scored=responses.scored[places],
        starts=starts,
        numbers=order,
        bounds=starts[sizes],
        width=width,
        pad_id=pad_id,
    )
