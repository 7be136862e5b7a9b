"""Which domain gives each example of a run: a pure function of the example's slot that keeps every
share at every moment."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import cache
from itertools import count

import numpy as np
from numpy.typing import NDArray

from llmkit.data.order import rows_of_slots, slots_of_step

_BITS = 31
_ONE = 1 << _BITS
"""Shares are counted in whole parts of this, so that every machine rounds alike."""

_Tree = int | tuple["_Tree", "_Tree", int]
"""A domain, or two trees with the share that the first has of both."""


def given(slots: NDArray[np.int64], shares: Sequence[float]) -> NDArray[np.int64]:
    """[slots, domains], the examples that each domain has given before each slot.

    They add up to the slot, and none is two or more away from the slot times its share (one, among
    up to three domains). The domains are halved like a Huffman code, and each half gets its share
    of the slots, rounded. Slots below 2^32.
    """
    found = np.zeros((len(slots), len(shares)), dtype=np.int64)
    _deal(slots, _tree(tuple(shares)), found)
    return found


def rows_of_step(
    step: int,
    *,
    global_batch_size: int,
    sizes: Sequence[int],
    shares: Sequence[float],
    seed: int,
    limit: int | None = None,
    occurrences: bool = False,
) -> NDArray[np.int64]:
    """The rows that step number `step` (from 0) trains on, of the domains laid end to end.

    A domain of n examples gives them in an order of its own for each of its epochs, as
    `order.rows_of_step` does, whatever the others give. Slots at or past `limit` are left out.
    `occurrences` adds the number of all rows for every epoch of the domain before, so that no two
    of a run are alike.
    """
    slots = slots_of_step(step, global_batch_size, limit)
    if not len(slots):
        return slots
    before = given(np.append(slots, slots[-1] + 1), shares)
    domains = np.diff(before, axis=0).argmax(axis=1)
    before = before[:-1]
    starts = np.cumsum([0, *sizes])
    rows = np.empty_like(slots)
    for domain in np.unique(domains).tolist():
        here = domains == domain
        own = before[here, domain]
        rows[here] = starts[domain] + rows_of_slots(own, sizes[domain], (seed, domain))
        if occurrences:
            rows[here] += own // sizes[domain] * starts[-1]
    return rows


def slots_before(step: int, global_batch_size: int, limit: int | None = None) -> int:
    """The slots of all steps before one."""
    slots = step * global_batch_size
    return slots if limit is None else min(slots, limit)


@cache
def _tree(shares: tuple[float, ...]) -> _Tree:
    """The two smallest are joined, again and again (Huffman 1952): the larger a share, the fewer
    roundings."""
    ties = count()
    trees: list[tuple[float, int, _Tree]] = [
        (share, next(ties), domain) for domain, share in enumerate(shares) if share > 0
    ]
    heapq.heapify(trees)
    while len(trees) > 1:
        small, _, first = heapq.heappop(trees)
        large, _, second = heapq.heappop(trees)
        both = small + large
        heapq.heappush(trees, (both, next(ties), (first, second, round(_ONE * small / both))))
    return trees[0][2]


def _deal(slots: NDArray[np.int64], tree: _Tree, found: NDArray[np.int64]) -> None:
    if isinstance(tree, int):
        found[:, tree] = slots
        return
    first, second, share = tree
    own = (slots * share + _ONE // 2) >> _BITS
    _deal(own, first, found)
    _deal(slots - own, second, found)
