"""The domains found in a text (`data.domains: auto`), shared by a seed and its branches."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.config.schema import Config, DataConfig
from llmkit.data.readers.files import Sources
from llmkit.data.text import division
from llmkit.data.text.clusters import CLUSTERS_FORMAT, Clusters, read_clusters
from llmkit.data.text.documents import mark_hints
from llmkit.data.text.domains import (
    TRAIN_FILES,
    VALIDATION_FILES,
    DomainText,
    RawText,
    Split,
    keys_by_domain,
)
from llmkit.data.text.spooled import Corpus
from llmkit.errors import ConfigError, DataError
from llmkit.progress import Say, Watch
from llmkit.reporting.format import many, within_columns
from llmkit.storage import cache, outputs, paths

_NUMBERS = "numbers.u16"
_SHOWN = 6  # words of a domain in a line
_COLUMNS = 80  # of a terminal


class FoundDomains:
    """The domains of the documents of `data.train_files`, and of `data.validation_files`.

    They are the `known` clusters, else clusters found in the training text, which the cache keeps.
    Raises the errors of reading and writing, and DataError for text with fewer documents than
    domains.
    """

    def __init__(
        self, config: Config, sources: Sources, known: Clusters | None, watch: Watch, say: Say
    ) -> None:
        self.config, self.names = config, list(config.data.mixture)
        training = RawText(sources.of(TRAIN_FILES), TRAIN_FILES, config, watch)
        self.clusters = known or _cached_clusters(training, say)
        self.training = DividedText(training, self.clusters, say)
        self.held_out: DividedText | None = None
        if found := sources.of(VALIDATION_FILES):
            held_out = RawText(found, VALIDATION_FILES, config, watch)
            self.held_out = DividedText(held_out, self.clusters, say)

    @property
    def report(self) -> dict[str, dict[str, Any]]:
        """What is in each domain of the training text: `documents`, `bytes`, telling `words`, and
        the beginning of a typical document as `example`."""
        return _report(self.names, self.clusters, self.training.found)

    def texts(self) -> dict[str, DomainText]:
        """The text of each domain that is used and has any."""
        texts, used = {}, keys_by_domain(self.config)
        for number, name in enumerate(self.names):
            if name in used and self.training.found[number]["documents"]:
                train, held_out = self.training.domain(number, name), None
                if self.held_out is not None:
                    held_out = self.held_out.domain(number, name)
                texts[name] = DomainText(train, held_out, self.config, name)
        return texts

    def close(self) -> None:
        """Release the text."""
        self.training.close()
        if self.held_out:
            self.held_out.close()


class DividedText:
    """A text of which each document belongs to one domain."""

    def __init__(self, whole: RawText, clusters: Clusters, say: Say) -> None:
        self.whole, self.clusters, self.say = whole, clusters, say

    @property
    def found(self) -> list[dict[str, Any]]:
        """What is in each domain, as in an `Assignment`."""
        return list(self._assignment.info["domains"])

    def domain(self, number: int, name: str) -> DomainPart:
        """The text of one domain."""
        return DomainPart(self, number, name)

    @cached_property
    def corpora(self) -> list[Corpus]:
        """The documents of each domain."""
        numbers = np.fromfile(self._assignment.path / _NUMBERS, np.uint16)
        whole, directory = self.whole, paths.cache_directory()
        made = division.divide(whole.spooled, numbers, len(self.clusters), directory, whole.watch)
        whole.close()
        return made

    @cached_property
    def _assignment(self) -> cache.Entry:
        def build(directory: Path) -> dict[str, Any]:
            made = division.assign(self.whole.spooled, self.clusters, self.whole.watch)
            made.numbers.tofile(directory / _NUMBERS)
            return {"domains": made.found}

        name = f"assignment-{cache.key(self.whole.key('all'), self.clusters.fingerprint)}"
        return cache.open_or_build(name, build, self.whole.watch, self.say)

    def close(self, done: bool = False) -> None:
        """Release the text; it is read again if it is needed again, which `done` says it is not."""
        self.whole.close(done)
        for read in self.__dict__.pop("corpora", ()):
            read.close()


class DomainPart(RawText):
    """The text of one found domain."""

    def __init__(self, divided: DividedText, number: int, name: str) -> None:
        whole = divided.whole
        self.config, self.watch, self.found = whole.config, whole.watch, whole.found
        self.workers = whole.workers
        self.name = name if whole.name == TRAIN_FILES else f"{name} of {whole.name}"
        self.divided, self.number = divided, number

    def key(self, part: Split) -> list[object]:
        """The cache key: that of the whole text, and which domain of which clusters this is."""
        return [*self.divided.whole.key(part), self.divided.clusters.fingerprint, self.number]

    @cached_property
    def spooled(self) -> Corpus:
        """The documents of the domain, of which there must be some."""
        return self.divided.corpora[self.number]

    def close(self, done: bool = False) -> None:
        """Release the text of all domains."""
        super().close(done)
        self.divided.close(done)


def known_clusters(config: Config, places: Sequence[Path]) -> Clusters | None:
    """The clusters that a run or one of these models was trained with; None if there are none.

    Raises ConfigError if they are not those that the config asks for, or not the same, and
    DataError if a file of them is damaged.
    """
    if config.data.domains is None:
        return None
    found = {place: known for place in places if (known := _clusters_near(place))}
    if len({each.fingerprint for each in found.values()}) > 1:
        raise ConfigError(
            f"{' and '.join(map(str, found))} were trained on different domains",
            where="data.domains",
            next="evaluate one model at a time, or all of them on text of --text",
        )
    for place, each in found.items():
        if len(each) != config.data.num_domains:
            raise ConfigError(
                f"{place} has {many(len(each), 'domain')}, not {config.data.num_domains}",
                where="data.num_domains",
                next=f"write data.num_domains={len(each)}, or begin with another model",
            )
    return next(iter(found.values()), None)


def outline_domains(
    config: Config, sources: Sources, known: Clusters | None, watch: Watch
) -> dict[str, dict[str, Any]]:
    """The report of `FoundDomains`, without leaving anything behind."""
    training = RawText(sources.of(TRAIN_FILES), TRAIN_FILES, config, watch)
    cached = paths.cache_directory()
    read = training.spool(cached if cached.is_dir() else Path(tempfile.gettempdir()))
    try:
        known = known or _found_clusters(training, read)
        found = division.assign(read, known, watch).found
    finally:
        read.close()
    return _report(list(config.data.mixture), known, found)


def domain_lines(report: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Two lines for each domain of a report, for a terminal of 80 columns."""
    whole = sum(each["bytes"] for each in report.values())
    rows = [
        (name, f"{each['bytes'] / whole:.0%}", f"{each['bytes']:,} bytes",
         many(each["documents"], "document"), each)
        for name, each in report.items()
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for *cells, each in rows:
        name, *figures = cells
        aligned = [text.rjust(width) for text, width in zip(figures, widths[1:], strict=True)]
        line = f"  {name.ljust(widths[0])}  {'  '.join(aligned)}: {each['words']}"
        yield within_columns(line, _COLUMNS)
        if each["example"]:
            yield f"  {' ' * widths[0]}  {each['example']}"


def _cached_clusters(training: RawText, say: Say) -> Clusters:
    """The clusters of a text, found once."""

    def build(directory: Path) -> dict[str, Any]:
        _found_clusters(training, training.spooled).write(directory)
        return {}

    data = training.config.data
    wanted = [CLUSTERS_FORMAT, training.key("all"), data.num_domains, training.config.seed]
    entry = cache.open_or_build(f"domains-{cache.key(wanted)}", build, training.watch, say)
    found = read_clusters(entry.path)
    assert found is not None
    return found


def _found_clusters(training: RawText, read: Corpus) -> Clusters:
    """The clusters of a text; raises DataError if its documents are too few or too much alike."""
    number, config = training.config.data.num_domains, training.config
    where = ", ".join(str(source.path) for source in training.found[:3])
    found = division.find_clusters(read, number, config.seed, training.watch)
    if found is not None:
        return found
    if read.n_documents < number:
        what = f"{many(read.n_documents, 'document')} cannot be divided into {number} domains"
        advice = _advice(read, config.data)
    else:
        what = f"the documents are too much alike to be divided into {number} domains"
        advice = "lower data.num_domains"
    raise DataError(what, where=f"{training.name}: {where}", next=advice)


def _advice(read: Corpus, data: DataConfig) -> str:
    """How to get as many documents as domains out of a text."""
    if hint := next(mark_hints(read.marks, read.n_documents), None):
        return hint
    ways = [f"lower data.num_domains to {read.n_documents}"] if read.n_documents > 1 else []
    if data.document == "file" and data.document_separator is None:
        ways.append(
            "say what separates documents: data.document=blank_line, data.document=line or "
            "data.document_separator"
        )
    return ", or ".join(ways or ["add text"])


def _report(
    names: Sequence[str], known: Clusters, found: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    telling = (", ".join(words[:_SHOWN]) for words in known.telling)
    return {
        name: {"documents": each["documents"], "bytes": each["bytes"], "words": words,
               "example": each["example"]}
        for name, words, each in zip(names, telling, found, strict=True)
    }  # fmt: skip


def _clusters_near(place: Path) -> Clusters | None:
    """The clusters in a model directory, or in the run that it belongs to."""
    for directory in (place, *place.resolve().parents[:2]):
        is_near = directory == place or (directory / outputs.RUN).is_file()
        if is_near and (found := read_clusters(directory)):
            return found
    return None
