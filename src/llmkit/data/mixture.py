"""Several domains as one set of examples, each with its share of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.data import mixing
from llmkit.data.tokens import TokenFile

Rows = Sequence[int] | NDArray[np.int64]


class Part(Protocol):
    """What is needed of the blocks of one domain."""

    @property
    def tokens(self) -> TokenFile: ...
    @property
    def block_size(self) -> int: ...
    @property
    def n_bytes(self) -> float: ...
    def __len__(self) -> int: ...
    def count(self, rows: Rows) -> int: ...
    def batch(self, rows: Rows) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Mixture:
    """The blocks of several domains laid end to end; rows number them through."""

    domains: Mapping[str, Part]
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

    def count(self, rows: Rows) -> int:
        """Predictions scored in these blocks."""
        return sum(self._parts[domain].count(own) for domain, _, own in self._by_domain(rows))

    def longest_first(self) -> Sequence[int]:
        """All rows in their order: they are equally long."""
        return range(len(self))

    def batch(self, rows: Rows) -> dict[str, torch.Tensor]:
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
        return mixing.rows_of_step(
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
        slots = mixing.slots_before(step, global_batch_size, limit)
        given = mixing.given(np.array([slots]), self.shares)[0].tolist()
        parts = zip(self.domains.items(), given, strict=True)
        return {name: number / len(part) for (name, part), number in parts}

    @cached_property
    def _parts(self) -> list[Part]:
        return list(self.domains.values())

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *map(len, self._parts)])

    def _by_domain(self, rows: Rows) -> list[tuple[int, torch.Tensor, NDArray[np.int64]]]:
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
