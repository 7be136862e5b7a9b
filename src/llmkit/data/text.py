"""The text of one key of the data section, read only when something must be made of it."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from llmkit.config.schema import Config
from llmkit.data import corpus, held_out, sources, tokens
from llmkit.data.corpus import Corpus, Documents
from llmkit.errors import DataError, InputNotFound
from llmkit.progress import Watch
from llmkit.storage import cache

Part = Literal["all", "train", "validation"]


class Text:
    """What one key of the data section names: found and hashed at once, read at the first need."""

    def __init__(self, config: Config, key: str, watch: Watch, name: str | None = None) -> None:
        """`name` is what the user calls the key, where that is not its own name."""
        self.config, self.name, self.watch = config, name or f"data.{key}", watch
        entries = getattr(config.data, key)
        if not entries:
            raise InputNotFound(
                f"{self.name} is not given",
                where=self.name,
                next=f"{self.name}=FILE, a directory, a glob, or hub:NAME",
            )
        self.found = sources.find(entries, self.name)
        self.n_bytes = sum(source.n_bytes for source in self.found)
        with watch("looking for prepared data", self.n_bytes) as advance:
            self.fingerprint = sources.fingerprint(self.found, advance)

    def key(self, part: Part) -> list[object]:
        """What decides which text a part holds."""
        data = self.config.data
        table = [data.format, data.delimiter, data.header, data.text_column]
        how = [*table, data.document, data.document_separator, data.encoding, data.errors]
        split = [] if part == "all" else [data.validation_fraction, self.config.seed]
        return [tokens.FORMAT, self.fingerprint, how, part, split]

    def part(self, part: Part) -> Documents:
        """The documents of a part."""
        if part == "all":
            return corpus.everything(self._corpus)
        return self._split[part == "validation"]

    def close(self) -> None:
        """Give up what was read."""
        if "_corpus" in self.__dict__:
            self._corpus.close()

    @cached_property
    def _corpus(self) -> Corpus:
        with self.watch("reading", self.n_bytes) as advance:
            read = corpus.spool(self.found, self.config.data, cache.directory(), advance)
        if not read.n_documents:
            raise DataError(
                f"{self.name} holds no text: all {read.blank:,} documents are blank",
                where=", ".join(str(source.path) for source in self.found[:3]),
                next="name files that hold text",
            )
        return read

    @cached_property
    def _split(self) -> tuple[Documents, Documents]:
        return held_out.split(self._corpus, self.config.data.validation_fraction, self.config.seed)


class Pair:
    """The text of one data set, or of one domain of several: what is learned from, and what is held
    out."""

    def __init__(self, config: Config, watch: Watch, domain: str = "") -> None:
        data, named = config.data, f"data.mixture.{domain}." if domain else None
        self.train = Text(config, "train_files", watch, named and f"{named}files")
        self.train_part: Part = "all"
        self.held_out: Text | None = None
        self.held_out_part: Part = "all"
        if data.validation_files:
            name = named and f"{named}validation_files"
            self.held_out = Text(config, "validation_files", watch, name)
        elif data.validation_fraction != 0:
            self.held_out = self.train
            self.train_part, self.held_out_part = "train", "validation"
        self.is_learned = not domain or data.mixture[domain].weight != 0

    def close(self) -> None:
        """Give up what was read."""
        self.train.close()
        if self.held_out:
            self.held_out.close()
