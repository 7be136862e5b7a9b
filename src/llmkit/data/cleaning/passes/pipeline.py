"""Cleaning in three passes over fixed units: scan, link, write; any number of workers share the
scans and the writing, and the result does not depend on them."""

from __future__ import annotations

import importlib.metadata
import itertools
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.config.schema import CleanConfig, DataConfig
from llmkit.data.cleaning import lines
from llmkit.data.cleaning.encodings import encoding_of
from llmkit.data.cleaning.passes.link import link_documents
from llmkit.data.cleaning.passes.scan import LINES_FILE, NumberedSource, scan_documents, scan_lines
from llmkit.data.cleaning.passes.signatures import algorithm
from llmkit.data.cleaning.passes.writing import TEXT_FILE, Scanned, write_documents
from llmkit.data.readers.files import Source, files_fingerprint
from llmkit.data.readers.ranges import n_range_bytes, unit_sources, whole_source
from llmkit.progress import Advance, Watch
from llmkit.storage import cache
from llmkit.storage.outputs import TRACE
from llmkit.storage.units import Unit, Units, Workers

CLEANING_FORMAT = 2
"""Raised when the same input gives another result."""

UNIT_BYTES = 32 << 20
"""Files are read together up to this size, and a larger one in ranges where it can be cut."""

_DATA_KEYS = (
    "format", "delimiter", "header", "text_column", "document", "document_separator", "encoding",
    "errors",
)  # fmt: skip


@dataclass(frozen=True)
class CleaningPlan:
    """What to clean, and how; it decides the result."""

    sources: tuple[NumberedSource, ...]
    """Those that are only compared come first."""
    data: DataConfig
    settings: CleanConfig
    identity: dict[str, Any]
    """Content of the input, settings and versions."""

    @property
    def names(self) -> list[str]:
        """The names of the sources, by number."""
        return [str(each.source.path) for each in self.sources]

    @property
    def n_bytes(self) -> int:
        """The size of all files."""
        return sum(each.source.n_bytes for each in self.sources)

    def groups(self) -> list[list[NumberedSource]]:
        """The sources, or ranges of large ones, of each unit."""
        return [*self._groups(held_out=True), *self._groups(held_out=False)]

    def _groups(self, held_out: bool) -> Iterator[list[NumberedSource]]:
        chosen = [each for each in self.sources if each.is_held_out == held_out]
        known = {_decoded(each): each for each in chosen}
        if chosen:
            for parts in unit_sources([*known], self.data, UNIT_BYTES):
                yield [_part(known[whole_source(part)], part) for part in parts]


def _decoded(each: NumberedSource) -> Source:
    """The source with its encoding."""
    return each.source if each.encoding is None else each.encoding.source or each.source


def _part(each: NumberedSource, part: Source) -> NumberedSource:
    """A range of a source, which is decoded as the whole."""
    encoding = each.encoding
    if encoding is not None and encoding.source is not None:
        encoding = encoding._replace(source=part)
    return replace(each, source=part, encoding=encoding)


def plan_cleaning(
    held_out: Sequence[Source],
    training: Sequence[Source],
    data: DataConfig,
    settings: CleanConfig,
    watch: Watch,
    hashed: bool = True,
) -> CleaningPlan:
    """The plan for cleaning the training files and comparing them with those held out. Unless
    `hashed`, it does not identify the content of the files, and no result is kept under it."""
    sources = tuple(
        NumberedSource(number, source, number < len(held_out))
        for number, source in enumerate([*held_out, *training])
    )
    content = [""] * len(sources)
    if hashed:
        with watch("hashing the files", sum(each.source.n_bytes for each in sources)) as advance:
            content = [files_fingerprint([each.source], advance) for each in sources]
        sources = tuple(replace(each, encoding=encoding_of(each.source, data)) for each in sources)
    described = settings.model_dump(mode="json", exclude={"output", "explain"})
    if settings.stop_words not in (None, "english"):
        described["stop_words"] = Path(str(settings.stop_words)).read_text(encoding="utf-8")
    identity = {
        "files": [
            [str(each.source.path), each.is_held_out, hashed]
            for each, hashed in zip(sources, content, strict=True)
        ],
        "settings": described,
        "data": data.model_dump(mode="json", include=set(_DATA_KEYS)),
        "versions": versions(),
    }
    return CleaningPlan(sources, data, settings, identity)


def versions() -> dict[str, str]:
    """The versions of everything that decides how text is cleaned."""
    found = {
        "cleaning": str(CLEANING_FORMAT),
        "minhash": algorithm(),
        "unicode": unicodedata.unidata_version,
    }
    for name in ("ftfy", "py3langid", "trafilatura", "charset-normalizer", "regex", "pyarrow"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@dataclass(frozen=True)
class Cleaned:
    """What the passes found, and the directories of the units that hold the text and the trace."""

    scans: list[dict[str, Any]]
    links: dict[str, Any]
    written: list[dict[str, Any]]
    directories: list[Path]
    """Of the units that were written, in order."""

    def text_files(self) -> list[Path]:
        """The parts of the cleaned text."""
        return [directory / TEXT_FILE for directory in self.directories]

    def copy_trace(self, path: Path) -> None:
        """Writes the trace of all units into one file."""
        with path.open("wb") as whole:
            for directory in self.directories:
                with (directory / TRACE).open("rb") as part:
                    shutil.copyfileobj(part, whole, 1 << 20)


class Passes:
    """The passes over the units of a plan."""

    def __init__(self, plan: CleaningPlan, units: Units, workers: Workers, watch: Watch) -> None:
        self.plan, self.units, self.workers, self.watch = plan, units, workers, watch
        self.groups = plan.groups()

    def carry_out(self) -> Cleaned:
        """Makes all units that are missing, together with other workers, and returns what they
        found."""
        boilerplate = self.frequent_lines()
        scans = self._units("scan")

        def scan(number: int, directory: Path, advance: Advance) -> dict[str, Any]:
            group, plan = self.groups[number], self.plan
            return scan_documents(group, plan.data, plan.settings, boilerplate, directory, advance)

        scanned = self._make(scans, scan, "cleaning")
        held_out = sum(group[0].is_held_out for group in self.groups)
        counts = [each["documents"] for each in scanned]
        before = _before(scanned)
        places = [self.units.path(unit) for unit in scans]

        def link(_: int, directory: Path, advance: Advance) -> dict[str, Any]:
            known = sum(counts[:held_out])
            parts, settings = (places, before), self.plan.settings
            return link_documents(*parts, known, settings, directory, lambda n: advance(0))

        linking = Unit(self._name("link", 0), sum(counts))
        links = self._make([linking], link, "comparing documents")[0]
        writes = self._units("write")[held_out:]
        first = [0, *itertools.accumulate(counts)]
        shown = {(each["kept"][0], each["kept"][1]) for each in links["largest"]}

        def write(number: int, directory: Path, advance: Advance) -> dict[str, Any]:
            number += held_out
            return write_documents(
                Scanned(places[number], first[number], before[number]),
                self.units.path(linking),
                self.plan.names,
                self.plan.settings,
                shown,
                directory,
            )

        written = self._make(writes, write, "writing")
        return Cleaned(scanned, links, written, [self.units.path(unit) for unit in writes])

    def frequent_lines(self) -> set[int]:
        """The hashes of the lines to take out; of none unless that is asked for."""
        least = self.plan.settings.boilerplate
        if least is None:
            return set()
        units = self._units("lines")

        def count(number: int, directory: Path, advance: Advance) -> dict[str, Any]:
            return scan_lines(self.groups[number], self.plan.data, directory, advance)

        self._make(units, count, "counting lines")
        hashes = [np.fromfile(self.units.path(unit) / LINES_FILE, np.uint64) for unit in units]
        return lines.frequent(hashes, least)

    def _make(
        self,
        units: list[Unit],
        make: Callable[[int, Path, Advance], dict[str, Any]],
        label: str,
    ) -> list[dict[str, Any]]:
        return self.units.make(units, make, self.workers, self.watch, label)

    def _units(self, phase: str) -> list[Unit]:
        sizes = (sum(n_range_bytes(each.source) for each in group) for group in self.groups)
        return [Unit(self._name(phase, n), size) for n, size in enumerate(sizes)]

    def _name(self, phase: str, number: int) -> str:
        return f"{phase}-{cache.key(self.plan.identity, number)}"


def _before(scanned: Sequence[Mapping[str, Any]]) -> list[dict[int, int]]:
    """For each scan the documents of each source that are in earlier ones."""
    total, found = dict[int, int](), list[dict[int, int]]()
    for scan in scanned:
        found.append({int(number): total.get(int(number), 0) for number in scan["sources"]})
        for number, counts in scan["sources"].items():
            total[int(number)] = total.get(int(number), 0) + counts["documents"]
    return found
