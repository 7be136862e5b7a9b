"""Conversations packed into rows of like length as the examples of a causal model."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.data.blocks import UNSCORED
from llmkit.data.responses import Responses

Rows = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class Packs:
    """Rows that hold one conversation or several, none cut, none of which sees another.

    Positions begin anew at each conversation, and none predicts a token of the next.
    """

    ids: NDArray[np.int32]
    scored: NDArray[np.bool_]
    """[tokens], whether each is predicted from those before it."""
    starts: NDArray[np.int64]
    """[conversations + 1], where each begins, pack by pack."""
    bounds: NDArray[np.int64]
    """[packs + 1], where each pack begins."""
    width: int | None
    """Tokens of every row; None where each is as long as the longest of its batch."""
    pad_id: int

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[packs], in tokens."""
        return np.diff(self.bounds)

    @property
    def n_predictions(self) -> int:
        """Predictions in all rows together."""
        return int(self.scored.sum())

    def count(self, rows: Rows) -> int:
        """Predictions in these rows."""
        chosen = np.asarray(rows, dtype=np.int64)
        return int(self._counts[chosen[chosen >= 0]].sum())

    def longest_first(self) -> Rows:
        """All rows, from the longest down."""
        return np.argsort(-self.lengths, kind="stable")

    def batch(self, rows: Rows) -> dict[str, torch.Tensor]:
        """The rows as tensors [rows, width]; row -1 is all padding.

        `input_ids` int64, padded on the right; `targets` int64, UNSCORED where nothing is
        predicted; `places` [predictions] int64, where something is, counted over all rows; `real`
        bool, False at padding, if there is any; and `position_ids` int64 where a row holds several
        conversations.
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
        """[packs], predictions of each."""
        before = np.concatenate([[0], np.cumsum(self.scored)])
        return np.diff(before[self.bounds])

    @cached_property
    def _begins(self) -> NDArray[np.bool_]:
        """[tokens], whether a conversation begins there."""
        begins = np.zeros(len(self.ids), dtype=np.bool_)
        begins[self.starts[:-1]] = True
        return begins


def packed(responses: Responses, width: int, pad_id: int) -> Packs:
    """Rows of `width` tokens, each filled with as many whole conversations as fit."""
    return _arranged(responses, fill(responses.lengths, width), width, pad_id)


def alone(responses: Responses, pad_id: int) -> Packs:
    """A row for each conversation, padded to the longest of its batch."""
    return _arranged(responses, [[row] for row in range(len(responses))], None, pad_id)


def fill(lengths: NDArray[np.int64], size: int) -> list[list[int]]:
    """Which items go together so that no pack holds more than `size`: from the longest down, each
    goes where it leaves the least room (best fit decreasing, Johnson et al. 1974)."""
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # of packs that are not full, by their room
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
    # Token k of a conversation goes where the conversation begins now, plus k.
    places = np.repeat(responses.starts[order] - starts[:-1], lengths) + np.arange(starts[-1])
    return Packs(
        ids=responses.ids[places],
        scored=responses.scored[places],
        starts=starts,
        bounds=starts[sizes],
        width=width,
        pad_id=pad_id,
    )
