"""Several domains as one set of examples, each with its share of a run."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import count
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.data.examples.order import rows_of_slots, slots_of_step
from llmkit.data.text.token_file import TokenFile

_BITS = 31
_ONE = 1 << _BITS
"""Shares are counted in whole parts of this, so that every machine rounds alike."""

_Tree = int | tuple["_Tree", "_Tree", int]
"""A domain, or two trees with the share that the first has of both."""

_Rows = Sequence[int] | NDArray[np.int64]


class DomainExamples(Protocol):
    """What is needed of the blocks of one domain."""

    @property
    def tokens(self) -> TokenFile: ...
    @property
    def block_size(self) -> int: ...
    @property
    def n_bytes(self) -> float: ...
    def __len__(self) -> int: ...
    def count(self, rows: _Rows) -> int: ...
    def batch(self, rows: _Rows) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Mixture:
    """The blocks of several domains laid end to end; rows number them through."""

    domains: Mapping[str, DomainExamples]
    shares: Sequence[float] = ()
    """What each domain has of the examples of a run; without them nothing is drawn."""
    tells_domain: bool = False
    """Whether `domain` of a batch, int64 [rows], numbers the domain of each row."""
    occurrences: bool = False
    """Whether rows go on past the last for each epoch: the blocks differ from time to time."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def block_size(self) -> int:
        """Tokens of a block, the same in all domains."""
        return self._parts[0].block_size

    @property
    def n_bytes(self) -> float:
        """UTF-8 bytes of the text in all blocks together."""
        return sum(part.n_bytes for part in self._parts)

    @property
    def tokens(self) -> TokenFile:
        """The tokens of the first domain."""
        return self._parts[0].tokens

    def count(self, rows: _Rows) -> int:
        """Predictions scored in these blocks."""
        return sum(self._parts[domain].count(own) for domain, _, own in self._by_domain(rows))

    def longest_first(self) -> Sequence[int]:
        """All rows in their order: they are equally long."""
        return range(len(self))

    def batch(self, rows: _Rows) -> dict[str, torch.Tensor]:
        """The blocks as tensors, like those of `Blocks`; row -1 is all padding."""
        parts = []
        for domain, places, own in self._by_domain(rows):
            part = self._parts[domain].batch(own)
            if self.tells_domain:
                part["domain"] = torch.full((len(own),), domain)
            parts.append((places, part))
        batch: dict[str, torch.Tensor] = {}
        for name in dict.fromkeys(name for _, part in parts for name in part):
            for places, part in parts:
                values = part[name] if name in part else _implied(name, part)
                if name not in batch:
                    batch[name] = values.new_empty((len(rows), *values.shape[1:]))
                batch[name][places] = values
        return batch

    def rows_of_step(
        self, step: int, *, global_batch_size: int, seed: int, limit: int | None = None
    ) -> NDArray[np.int64]:
        """The rows that step number `step` trains on, drawn by the shares."""
        sizes = [len(part) for part in self._parts]
        return mixed_rows_of_step(
            step,
            global_batch_size=global_batch_size,
            sizes=sizes,
            shares=self.shares,
            seed=seed,
            limit=limit,
            occurrences=self.occurrences,
        )

    def epochs(
        self, step: int, *, global_batch_size: int, limit: int | None = None
    ) -> dict[str, float]:
        """How often each domain has been gone through when `step` steps are done."""
        slots = slots_before(step, global_batch_size, limit)
        given = examples_given(np.array([slots]), self.shares)[0].tolist()
        parts = zip(self.domains.items(), given, strict=True)
        return {name: number / len(part) for (name, part), number in parts}

    @cached_property
    def _parts(self) -> list[DomainExamples]:
        return list(self.domains.values())

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *map(len, self._parts)])

    def _by_domain(self, rows: _Rows) -> list[tuple[int, torch.Tensor, NDArray[np.int64]]]:
        """Each domain that has some of the rows, where those stand, and their rows in it."""
        chosen = np.asarray(rows, dtype=np.int64)
        if len(chosen) and not self.occurrences and chosen.max() >= len(self):
            raise IndexError(f"row {chosen.max()} of {len(self)} blocks")
        epochs, within = np.divmod(np.maximum(chosen, 0), len(self))
        domains = np.searchsorted(self._starts[1:], within, side="right")
        found = []
        for domain in np.unique(domains).tolist():
            places = np.flatnonzero(domains == domain)
            own = epochs[places] * len(self._parts[domain]) + within[places] - self._starts[domain]
            own[chosen[places] < 0] = -1
            found.append((domain, torch.from_numpy(places), own))
        return found


def _implied(name: str, part: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a batch means that leaves an input out: positions from 0 on, one document, padding
    where there is no document."""
    ids = part["input_ids"]
    if name == "position_ids":
        return torch.arange(ids.shape[1]).expand_as(ids)
    if name == "real":
        return torch.ones_like(ids, dtype=torch.bool)
    if name == "documents":
        return part.get("attention_mask", torch.ones_like(ids))
    assert name == "attention_mask", name
    return (part["documents"] > 0).long() if "documents" in part else torch.ones_like(ids)


def examples_given(slots: NDArray[np.int64], shares: Sequence[float]) -> NDArray[np.int64]:
    """[slots, domains], the examples that each domain has given before each slot.

    They add up to the slot, and none is two or more away from the slot times its share (one, among
    up to three domains). The domains are halved like a Huffman code, and each half gets its share
    of the slots, rounded. Slots below 2^32.
    """
    found = np.zeros((len(slots), len(shares)), dtype=np.int64)
    _deal(slots, _tree(tuple(shares)), found)
    return found


def mixed_rows_of_step(
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
    before = examples_given(np.append(slots, slots[-1] + 1), shares)
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
