"""The text of a config: one key, or the domains of a mixture with their weights and shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from llmkit.config.data import DomainConfig
from llmkit.config.schema import Config
from llmkit.data.readers import files, ranges
from llmkit.data.readers.files import Source, Sources
from llmkit.data.text import corpus, spooling
from llmkit.data.text.corpus import Documents
from llmkit.data.text.spooled import Corpus
from llmkit.errors import ConfigError, DataError, InputNotFound
from llmkit.progress import Watch
from llmkit.reporting.format import many
from llmkit.storage import cache, paths
from llmkit.storage.units import ALONE, Units, Workers

TRAIN_FILES, VALIDATION_FILES = "data.train_files", "data.validation_files"

Split = Literal["all", "train", "validation"]


class RawText:
    """The text of one config key: hashed when created, read when first needed."""

    def __init__(
        self,
        found: Sequence[Source],
        key: str,
        config: Config,
        watch: Watch,
        workers: Workers = ALONE,
    ) -> None:
        self.config, self.name, self.watch, self.found = config, key, watch, found
        self.workers = workers
        if not found:
            raise InputNotFound(
                f"{self.name} is not given",
                where=self.name,
                next=f"{self.name}=FILE, a directory, a glob, or hub:NAME",
            )
        self.n_bytes = sum(source.n_bytes for source in self.found)
        with watch("looking for prepared data", self.n_bytes) as advance:
            self.fingerprint = files.files_fingerprint(self.found, advance)

    def key(self, part: Split) -> list[object]:
        """The cache key: everything that determines the text of a part."""
        data = self.config.data
        table = [data.format, data.delimiter, data.header, data.text_column]
        how = [*table, data.document, data.document_separator, data.encoding, data.errors]
        split = [] if part == "all" else [data.validation_fraction, self.config.seed]
        return [self.fingerprint, how, part, split]

    def part(self, part: Split) -> Documents:
        """The documents of a part."""
        if part == "all":
            return corpus.everything(self.spooled)
        return self._split[part == "validation"]

    def close(self, done: bool = False) -> None:
        """Release the text; it is read again if it is needed again. `done` says that it is not:
        the units of a large text are removed, unless another process uses them."""
        self.__dict__.pop("_split", None)
        if read := self.__dict__.pop("spooled", None):
            read.close()
        if store := self.__dict__.pop("_units", None):
            with store:
                if done:
                    store.discard()

    def spool(self, directory: Path) -> Corpus:
        """All documents, in an unnamed file in this directory; raises DataError if all are
        blank."""
        with self.watch("reading", self.n_bytes) as advance:
            return self._checked(spooling.spool(self.found, self.config.data, directory, advance))

    @cached_property
    def spooled(self) -> Corpus:
        """All documents, read when first needed."""
        if self.n_bytes <= ranges.RANGE_BYTES:
            return self.spool(paths.cache_directory())
        data, store = self.config.data, self._units
        return self._checked(
            spooling.spool_units(self.found, data, store, self.workers, self.watch)
        )

    @cached_property
    def _units(self) -> Units:
        name = f"text-{cache.key(spooling.SPOOL_FORMAT, self.key('all'))}"
        with cache.writing(paths.cache_directory()):
            return Units(paths.cache_directory() / name)

    def _checked(self, read: Corpus) -> Corpus:
        if not read.n_documents:
            raise DataError(
                f"{self.name} holds no text, only {many(read.blank, 'blank document')}",
                where=", ".join(str(source.path) for source in self.found[:3]),
                next="name files that hold text",
            )
        return read

    @cached_property
    def _split(self) -> tuple[Documents, Documents]:
        read = self.spooled
        with self.watch("choosing held-out text", 0):
            return corpus.split(read, self.config.data.validation_fraction, self.config.seed)


class DomainText:
    """The training and held-out text of a data set, or of one domain of a mixture."""

    def __init__(
        self, train: RawText, held_out: RawText | None, config: Config, domain: str
    ) -> None:
        self.train, self.held_out = train, held_out
        self.is_learned = not domain or config.data.mixture[domain].weight != 0
        self.train_part: Split = "all"
        self.held_out_part: Split = "all"
        if held_out is None and config.data.validation_fraction != 0:
            self.held_out = train
            self.train_part, self.held_out_part = "train", "validation"

    def close(self, done: bool = False) -> None:
        """Release the text; `done` says that it is not needed again."""
        self.train.close(done)
        if self.held_out:
            self.held_out.close(done)


def keys_by_domain(config: Config) -> dict[str, tuple[str, str]]:
    """The config keys of the training and validation text of each domain.

    Data without a mixture is one domain with an empty name. A domain without weight needs only
    validation files. A domain that would be neither trained on nor measured is omitted beside an
    expert, and otherwise refused with a ConfigError.
    """
    keys, data = {}, config.data
    for name, domain in data.mixture.items():
        held_out_files = domain.validation_files or (data.domains and data.validation_files)
        if domain.weight == 0 and not (held_out_files or data.validation_fraction):
            if data.expert is not None:
                continue
            raise ConfigError(
                f"the domain {name} would not be used: it has no weight, and nothing is held out",
                where=f"data.mixture.{name}.weight, data.validation_fraction",
                next=f"remove it, give it a weight, or set data.mixture.{name}.validation_files",
            )
        if data.domains is not None:
            keys[name] = TRAIN_FILES, VALIDATION_FILES
            continue
        files, held_out = (f"data.mixture.{name}.{key}" for key in ("files", "validation_files"))
        only_measured = domain.weight == 0 and domain.validation_files and not domain.files
        keys[name] = (held_out if only_measured else files), held_out
    return keys or {"": (TRAIN_FILES, VALIDATION_FILES)}


def learned_keys(config: Config) -> set[str]:
    """The config keys of the text that is trained on."""
    mixture, keys = config.data.mixture, keys_by_domain(config)
    return {key for name, (key, _) in keys.items() if not name or mixture[name].weight != 0}


def domain_texts(
    config: Config, sources: Sources, watch: Watch, workers: Workers = ALONE
) -> dict[str, DomainText]:
    """The text of each domain of `data.mixture`; data without a mixture has an empty name."""
    texts = {}
    for name, (key, held_out_key) in keys_by_domain(config).items():
        train, held_out = RawText(sources.of(key), key, config, watch, workers), None
        if found := sources.of(held_out_key):
            held_out = RawText(found, held_out_key, config, watch, workers)
        texts[name] = DomainText(train, held_out, config, name)
    return texts


def weights(
    domains: Mapping[str, DomainConfig], sizes: Mapping[str, int], temperature: float
) -> dict[str, float]:
    """The weight of each domain: as given, or tokens ^ (1 / temperature), where `sizes` are tokens
    (Arivazhagan et al. 2019, arXiv 1907.05019)."""
    return {
        name: sizes[name] ** (1 / temperature) if domain.weight == "auto" else domain.weight
        for name, domain in domains.items()
    }


def with_weights(config: Config, sizes: Mapping[str, int]) -> Config:
    """The config with the weights of its domains resolved; `sizes` are tokens."""
    data = config.data
    given = weights(data.mixture, sizes, data.mixture_temperature)
    domains = {name: domain.changed(weight=given[name]) for name, domain in data.mixture.items()}
    update = {"mixture": domains, "mixture_temperature": 1.0}
    return config.changed(data=data.changed(**update))


def shares(config: Config) -> dict[str, float]:
    """Each domain's share of the training examples; weights must be resolved."""
    given = {name: float(domain.weight) for name, domain in config.data.mixture.items()}
    return {name: weight / sum(given.values()) for name, weight in given.items()}
