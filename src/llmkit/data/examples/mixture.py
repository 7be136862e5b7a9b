"""Mix the examples of several domains, each with its share of a run."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.data.examples.order import rows_of_slots, slots_of_step
from llmkit.data.text.token_file import TokenFile

_BITS = 31
_ONE = 1 << _BITS
"""Shares are multiples of one over this number, so that every machine rounds the same way."""

_Tree = int | tuple["_Tree", "_Tree", int]
"""A domain, or two trees with the share of the first."""

_Rows = Sequence[int] | NDArray[np.int64]


class DomainExamples(Protocol):
    """The examples of one domain."""

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
    """The concatenated blocks of several domains; rows are numbered consecutively."""

    domains: Mapping[str, DomainExamples]
    shares: Sequence[float] = ()
    """Each domain's share of the training examples; without shares nothing is sampled."""
    tells_domain: bool = False
    """Whether batches have `domain`, int64 [rows], the domain number of each row."""
    occurrences: bool = False
    """Whether row numbers keep growing with each epoch, since blocks differ between epochs."""
    trained_on: Collection[str] = ()
    """Of validation examples, the domains that training sees; the others are only measured."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def block_size(self) -> int:
        """Tokens per block, the same in all domains."""
        return self._parts[0].block_size

    @property
    def n_bytes(self) -> float:
        """UTF-8 bytes of the text in all blocks together."""
        return sum(part.n_bytes for part in self._parts)

    @property
    def representative(self) -> Mixture:
        """The domains whose metrics together are those of a run: the domains that it trains on,
        or all if no examples of those are held out."""
        some = {name: part for name, part in self.domains.items() if name in self.trained_on}
        return replace(self, domains=some or self.domains)

    @property
    def tokens(self) -> TokenFile:
        """The tokens of the first domain."""
        return self._parts[0].tokens

    def count(self, rows: _Rows) -> int:
        """Number of predictions in these blocks."""
        return sum(self._parts[domain].count(own) for domain, _, own in self._by_domain(rows))

    def pairs(self, rows: _Rows) -> int:
        """Number of these rows with two segments, in a mixture of sentence pairs."""
        parts: list[Any] = list(self._parts)
        return sum(parts[domain].pairs(own) for domain, _, own in self._by_domain(rows))

    def longest_first(self) -> Sequence[int]:
        """All rows in their order: they are equally long."""
        return range(len(self))

    def batch(self, rows: _Rows) -> dict[str, torch.Tensor]:
        """The blocks as tensors, like those of `Blocks`; row -1 is padding only."""
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
        """The rows of step number `step`, sampled by the shares."""
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
        """The number of epochs of each domain after `step` steps."""
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
        """Each domain with some of the rows, their indices in `rows`, and their rows in the
        domain."""
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
    """The default of an input that a batch lacks: positions from 0, one document, padding where
    there is no document."""
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
    """[slots, domains], the number of examples from each domain before each slot.

    They add up to the slot, and each differs from the slot times its share by less than two (less
    than one for up to three domains). The domains form a binary tree like a Huffman code, and each
    half gets its rounded share of the slots. Slots are below 2^32.
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
    """The rows of step number `step` (from 0), among the concatenated domains.

    A domain is shuffled again for each of its epochs, as in `order.rows_of_step`, independently of
    the others. Slots at or past `limit` are skipped. `occurrences` adds the total number of rows
    for every earlier epoch of the domain, so that no row number repeats in a run.
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
    """The number of slots of all earlier steps."""
    slots = step * global_batch_size
    return slots if limit is None else min(slots, limit)


@cache
def _tree(shares: tuple[float, ...]) -> _Tree:
    """Repeatedly join the two smallest shares (Huffman 1952): the larger a share, the fewer
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
