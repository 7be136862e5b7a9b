"""Several domains as one set of examples, each with its share of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.config.mixture import DomainConfig
from llmkit.config.schema import Config
from llmkit.data.blocks import Blocks
from llmkit.errors import ConfigError

Rows = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class Mixture:
    """The blocks of several domains laid end to end; rows number them through."""

    domains: Mapping[str, Blocks]
    tells_domain: bool = False
    """Whether `domain` of a batch, int64 [rows], numbers the domain of each row."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def block_size(self) -> int:
        """Tokens of a block, the same in all domains."""
        return self._parts[0].block_size

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of the text in all blocks together."""
        return sum(part.n_bytes for part in self._parts)

    def count(self, rows: Rows) -> int:
        """Predictions scored in these blocks."""
        return sum(self._parts[domain].count(own) for domain, _, own in self._by_domain(rows))

    def longest_first(self) -> Sequence[int]:
        """All rows in their order: they are equally long."""
        return range(len(self))

    def batch(self, rows: Rows) -> dict[str, torch.Tensor]:
        """The blocks as tensors, like those of `Blocks`; row -1 is all padding."""
        batch: dict[str, torch.Tensor] = {}
        for domain, places, own in self._by_domain(rows):
            part = self._parts[domain].batch(own)
            if self.tells_domain:
                part["domain"] = torch.full((len(own),), domain)
            for name, values in part.items():
                if name not in batch:
                    batch[name] = _usual(name, (len(rows), *values.shape[1:]))
                batch[name][places] = values
        return batch

    @cached_property
    def _parts(self) -> list[Blocks]:
        return list(self.domains.values())

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *map(len, self._parts)])

    def _by_domain(self, rows: Rows) -> list[tuple[int, torch.Tensor, NDArray[np.int64]]]:
        """Each domain that has some of the rows, where those stand, and their rows in it."""
        chosen = np.asarray(rows, dtype=np.int64)
        domains = np.searchsorted(self._starts[1:], chosen, side="right")
        found = []
        for domain in np.unique(domains).tolist():
            places = np.flatnonzero(domains == domain)
            own = chosen[places]
            own = np.where(own < 0, own, own - self._starts[domain])
            found.append((domain, torch.from_numpy(places), own))
        return found


def configs(config: Config) -> dict[str, Config]:
    """The config of each domain as if it were the only data; one that is only measured needs no
    more than files to measure.

    Raises ConfigError for a domain that would be neither trained on nor measured.
    """

    def alone(name: str, domain: DomainConfig) -> Config:
        held_out = domain.validation_files or config.data.validation_fraction != 0
        if domain.weight == 0 and not held_out:
            raise ConfigError(
                f"the domain {name} would not be used: it has no weight, and nothing is held out",
                where=f"data.mixture.{name}.weight, data.validation_fraction",
                next=f"leave it out, give it a weight, or data.mixture.{name}.validation_files",
            )
        files = domain.files or (domain.validation_files if domain.weight == 0 else ())
        own = {"train_files": files, "validation_files": domain.validation_files}
        return config.model_copy(update={"data": config.data.model_copy(update=own)})

    return {name: alone(name, domain) for name, domain in config.data.mixture.items()}


def weights(
    domains: Mapping[str, DomainConfig], sizes: Mapping[str, int], temperature: float
) -> dict[str, float]:
    """The weight of each domain: as it is given, or tokens ^ (1 / temperature), where `sizes` are
    tokens (Arivazhagan et al. 2019, arXiv 1907.05019)."""
    return {
        name: sizes[name] ** (1 / temperature) if domain.weight == "auto" else domain.weight
        for name, domain in domains.items()
    }


def _usual(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """What domains mean that leave a part of their batch out: positions from 0 on."""
    if name == "position_ids":
        return torch.arange(shape[1]).repeat(shape[0], 1)
    return torch.zeros(shape, dtype=torch.int64)
