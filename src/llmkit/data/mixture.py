"""Several domains as one set of examples, each with its share of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.config.mixture import DomainConfig
from llmkit.config.schema import Config
from llmkit.data import mixing
from llmkit.data.cache import Watch, key
from llmkit.data.text import Pair
from llmkit.data.tokens import TokenFile
from llmkit.errors import ConfigError

Rows = Sequence[int] | NDArray[np.int64]


class Part(Protocol):
    """What is needed of the blocks of one domain."""

    @property
    def tokens(self) -> TokenFile: ...
    @property
    def block_size(self) -> int: ...
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
    def n_bytes(self) -> int:
        """UTF-8 bytes of the text in all blocks together."""
        return sum(part.tokens.n_bytes for part in self._parts)

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


def texts(config: Config, watch: Watch) -> dict[str, Pair]:
    """The text of each domain; of data without a mixture, under no name."""
    return {name: Pair(own, watch, name) for name, own in configs(config).items()}


def joined(files: Sequence[TokenFile]) -> tuple[TokenFile, NDArray[np.int64]]:
    """Several streams of tokens as one, in memory, and where each begins in it.

    Where one id closes a document and opens the next, it does so between streams too.
    """
    shared = int(files[0].opening == files[0].closing)
    kept = [file.ids[shared if number else 0 :] for number, file in enumerate(files)]
    begins = np.cumsum([0, *(len(file.ids) - shared for file in files[:-1])])
    first = files[0]
    whole = replace(
        first,
        ids=np.concatenate(kept),
        starts=np.concatenate([f.starts + begin for f, begin in zip(files, begins, strict=True)]),
        document_bytes=np.concatenate([file.document_bytes for file in files]),
        n_bytes=sum(file.n_bytes for file in files),
        max_id=max(file.max_id for file in files),
        blank=sum(file.blank for file in files),
        undecodable=sum(file.undecodable for file in files),
        lost=sum(f.lost * f.n_bytes for f in files) / max(1, sum(f.n_bytes for f in files)),
        fingerprint=key(*(file.fingerprint for file in files)),
        path=None,
    )
    return whole, begins


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


def _implied(name: str, part: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a batch means that leaves an input out: positions from 0 on, one document, padding
    where there is no document."""
    ids = part["input_ids"]
    if name == "position_ids":
        return torch.arange(ids.shape[1]).expand_as(ids)
    if name == "documents":
        return part.get("attention_mask", torch.ones_like(ids))
    assert name == "attention_mask", name
    return (part["documents"] > 0).long() if "documents" in part else torch.ones_like(ids)
