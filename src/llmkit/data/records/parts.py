"""The rows of each part of a data set, as they are read: from files, or by their position."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from llmkit.config.schema import DataConfig
from llmkit.data.readers.files import Source, Sources
from llmkit.data.records.labels import Raw
from llmkit.data.records.splits import Texts, cut_rows, text_identity
from llmkit.errors import InputNotFound
from llmkit.progress import Advance, Say, Watch
from llmkit.reporting.format import many

PART_NAMES = ("train", "validation", "test")
"""The parts of a data set, in the order in which they are read."""

SHOWN = 20
"""Maximum number of rows listed in a message or finding; all are counted."""

Place = tuple[str, int]
"""A file and a row number in it, counted from 1."""


@dataclass
class Counts:
    """Counts of lines and bytes that did not become rows."""

    blank_lines: int = 0
    """Empty lines of tables, which are not rows."""
    undecodable: int = 0
    """Invalid bytes that were replaced or ignored."""


class RowProblem(NamedTuple):
    """Why a row cannot be used."""

    name: str
    """Its name in `data.allow`."""
    reason: str
    where: str
    place: Place


S = TypeVar("S")
Read = Callable[[Sequence[Source], Advance, Counts], Iterator[S]]
"""Reads the rows of files."""


class PartRows(NamedTuple, Generic[S]):
    """The rows of one part before they are read."""

    key: str
    """The key that chooses them."""
    paths: Sequence[str]
    rows: Iterable[S]
    counts: Counts
    """Filled while the rows are read."""


def rows_of_parts(
    sources: Sources,
    data: DataConfig,
    read: Read[S],
    watch: Watch,
    say: Say,
) -> dict[str, PartRows[S]]:
    """The rows of each part: those of its files, or those that `data.train_rows` and its siblings
    cut from the training files, which are then in memory.

    Raises ConfigError for ranges that are empty, overlap or leave the files.
    """
    found = training_sources(sources)
    parts = {name: rows_of_files(name, some, read, watch) for name, some in found.items()}
    if ranges := row_ranges(data):
        files = parts.pop("train")
        whole = list(files.rows)
        cut = cut_rows(ranges, len(whole), (files.key, ", ".join(files.paths)))
        say(_sentence(cut, len(whole), files.key))
        for name, chosen in cut.items():
            kept = [whole[number] for number in chosen]
            counts = files.counts if name == "train" else Counts()
            parts[name] = PartRows(f"data.{name}_rows", [], kept, counts)
    return {name: parts[name] for name in PART_NAMES if name in parts}


def row_ranges(data: DataConfig) -> dict[str, str]:
    """The ranges of rows that are given, by the names of their parts."""
    given = {name: getattr(data, f"{name}_rows") for name in PART_NAMES}
    return {name: rows for name, rows in given.items() if rows is not None}


def training_sources(sources: Sources) -> dict[str, list[Source]]:
    """The sources of each part, `train` and others that are given; raises InputNotFound without
    training files."""
    found = {name: some for name in PART_NAMES if (some := sources.of(f"data.{name}_files"))}
    if "train" not in found:
        raise InputNotFound(
            "data.train_files is not given",
            where="data.train_files",
            next="data.train_files=FILE, a directory, a glob, or hub:NAME",
        )
    return found


def rows_of_files(name: str, found: Sequence[Source], read: Read[S], watch: Watch) -> PartRows[S]:
    """All rows of files, as one part."""
    key, counts = f"data.{name}_files", Counts()

    def rows() -> Iterator[S]:
        with watch(f"reading {key}", sum(source.n_bytes for source in found)) as advance:
            yield from read(found, advance, counts)

    return PartRows(key, [str(source.path) for source in found], rows(), counts)


def _sentence(cut: Mapping[str, Sequence[int]], n_rows: int, key: str) -> str:
    """What was cut, counted from 0 as in the ranges."""
    shown = [
        f"{len(rows):,} for {name} ({rows[0]:,} to {rows[-1]:,})" for name, rows in cut.items()
    ]
    left = n_rows - sum(map(len, cut.values()))
    rest = f"; {left:,} in no part" if left else ""
    return f"{many(n_rows, 'row')} of {key}, numbered from 0: {', '.join(shown)}{rest}"


@dataclass
class Part:
    """The usable rows of one key, and the places of the others."""

    name: str
    """`train`, `validation` or `test`."""
    texts: list[Texts] = field(default_factory=list)
    raws: list[Raw] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    seen: list[Texts] = field(default_factory=list)
    """The texts as encoded by the model's tokenizer, if it is known."""
    blank: list[tuple[Place, str]] = field(default_factory=list)
    """Rows without text or label, and which of the two is missing."""
    problems: list[RowProblem] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    files: dict[str, int] = field(default_factory=dict)
    """Number of rows by file."""
    chosen_by: str = ""
    """The key of its rows, if that is not the one of its files."""

    @property
    def key(self) -> str:
        """The key that chooses the rows."""
        return self.chosen_by or f"data.{self.name}_files"

    @property
    def identities(self) -> list[Texts]:
        """[rows], equal if the model reads two rows as the same; without a tokenizer, if their
        texts differ only in the white space around them."""
        return self.seen or [text_identity(texts) for texts in self.texts]

    interned: dict[Raw, Raw] = field(default_factory=dict, repr=False)
    """One object for equal labels."""

    def __len__(self) -> int:
        return len(self.texts) + len(self.blank) + len(self.problems)

    def add(self, row: Any) -> None:
        """Adds a usable row."""
        self.texts.append(row.texts)
        self.raws.append(self.interned.setdefault(row.label, row.label))
        self.places.append((row.path, row.number))


P = TypeVar("P", bound=Part)


def filled(part: P, rows: PartRows[Any]) -> P:
    """The part with all its rows read into memory; raises the errors of reading."""
    part.chosen_by, part.counts, part.files = rows.key, rows.counts, dict.fromkeys(rows.paths, 0)
    for row in rows.rows:
        part.files[row.path] = part.files.get(row.path, 0) + 1
        if not any(text.strip() for text in row.texts):
            part.blank.append(((row.path, row.number), "text"))
        elif row.problem:
            part.problems.append(row.problem)
        elif row.label is None:
            part.blank.append(((row.path, row.number), "label"))
        else:
            part.add(row)
    return part


def format_places(places: Iterable[Place]) -> str:
    """The first places, formatted for a message."""
    several = list(dict.fromkeys(places))
    by_file: dict[str, list[str]] = {}
    for path, number in several[:SHOWN]:
        by_file.setdefault(path, []).append(str(number))
    parts = [
        f"{path} row{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
        for path, numbers in by_file.items()
    ]
    return "; ".join(parts) + (" ..." if len(several) > SHOWN else "")
