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
from llmkit.data import mixing
from llmkit.data.blocks import Blocks
from llmkit.data.tokens import TokenFile
from llmkit.errors import ConfigError

Rows = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class Mixture:
    """The blocks of several domains laid end to end; rows number them through."""

    domains: Mapping[str, Blocks]
    shares: Sequence[float] = ()
    """What each domain has of the examples of a run; without them nothing is drawn."""
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
    """The config of each domain as if it were the only data, or the config itself, without a name,
    where there is no mixture. A domain that is only measured needs no more than files to measure.

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

    domains = config.data.mixture
    return {name: alone(name, domain) for name, domain in domains.items()} or {"": config}


def weights(
    domains: Mapping[str, DomainConfig], sizes: Mapping[str, int], temperature: float
) -> dict[str, float]:
    """The weight of each domain: as it is given, or tokens ^ (1 / temperature), where `sizes` are
    tokens (Arivazhagan et al. 2019, arXiv 1907.05019)."""
    return {
        name: sizes[name] ** (1 / temperature) if domain.weight == "auto" else domain.weight
        for name, domain in domains.items()
    }


def settled(config: Config, sizes: Mapping[str, int]) -> Config:
    """The config with the weights of its domains spelled out; `sizes` are tokens."""
    data = config.data
    given = weights(data.mixture, sizes, data.mixture_temperature)
    domains = {
        name: domain.model_copy(update={"weight": given[name]})
        for name, domain in data.mixture.items()
    }
    update = {"mixture": domains, "mixture_temperature": 1.0}
    return config.model_copy(update={"data": data.model_copy(update=update)})


def shares(config: Config) -> dict[str, float]:
    """The share that each domain has of the training examples, once weights are settled."""
    given = {name: float(domain.weight) for name, domain in config.data.mixture.items()}
    return {name: weight / sum(given.values()) for name, weight in given.items()}


def _usual(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """What domains mean that leave a part of their batch out: positions from 0 on."""
    if name == "position_ids":
        return torch.arange(shape[1]).repeat(shape[0], 1)
    return torch.zeros(shape, dtype=torch.int64)
