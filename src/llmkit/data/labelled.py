"""Rows of labelled tables as they come: texts, label, and the other columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llmkit.config.schema import DataConfig
from llmkit.data import columns as _columns
from llmkit.data import sources, tables
from llmkit.data.cache import Say
from llmkit.data.columns import Columns
from llmkit.data.delimited import Record
from llmkit.data.labels import Raw
from llmkit.data.reading import Reading
from llmkit.data.tables import Table
from llmkit.errors import DataError

_CELLS = {"1": True, "0": False, "1.0": True, "0.0": False, "true": True, "false": False}


class Row(NamedTuple):
    """One row of a labelled table."""

    number: int
    """Data rows of the file, counted from 1."""
    path: str
    texts: tuple[str, ...]
    """One text, or two that belong together."""
    label: Raw | None
    """As it is written, without white space around it; None for a blank one."""
    extra: dict[str, Any]
    """The other columns, by name or else by number."""


@dataclass
class Counts:
    """What reading rows found besides them."""

    blank_lines: int = 0
    """Lines of tables that hold nothing and are no rows."""
    undecodable: int = 0
    """Bytes that were replaced or ignored."""


def read(
    data: DataConfig,
    key: str,
    *,
    labelled: bool = True,
    extra: bool = True,
    advance: Callable[[int], None] = lambda n_bytes: None,
    counts: Counts | None = None,
) -> Iterator[Row]:
    """The rows of what a key of the data section names, such as `test_files`, in bounded memory.

    Columns must be settled. Where rows need not be labelled, the lines of plain text files are
    texts, labels are None, and all columns but the text are extra. Of two text columns a row has
    the texts as a pair, of more it has them joined by a space. Raises DataError with file and row
    for what is broken, where labels are not 0 or 1 in columns of one label each, and for columns
    that are not there.
    """
    counts = counts or Counts()
    for source in sources.find(getattr(data, key), f"data.{key}"):
        reading = Reading(data, advance)
        table = tables.open_table(source, reading, labelled)
        if len(table.columns) == 0:
            continue
        yield from _rows(_Picked(table, data, str(source.path), labelled), extra, counts)
        counts.undecodable += reading.undecodable
        sources.check_unchanged(source)


def settle(data: DataConfig, key: str, say: Say, labelled: bool = True) -> DataConfig:
    """The data section with its columns spelled out, and with whether tables have a header.

    Columns that are not given are guessed by the first table of the key, if only one can be meant,
    and the guess is said. Raises DataError with the columns that exist where none, or more than
    one, can be meant.
    """
    for source in sources.find(getattr(data, key), f"data.{key}"):
        table = tables.open_table(source, Reading(data, lambda n_bytes: None), labelled)
        if len(table.columns):
            return _settled(data, table, str(source.path), say, labelled)
    return data


def _settled(
    data: DataConfig, table: Table, where: str, say: Say, labelled: bool
) -> DataConfig:
    columns = table.columns
    given_text = _numbers(columns, data.text_column, "data.text_column", where)
    given_label = _numbers(columns, data.label_column, "data.label_column", where)
    label = given_label
    if labelled and not label:
        rows = [_as_texts(record) for record in table.sample()]
        label = _columns.guess_label(columns, given_text, rows) or ()
    usual = () if labelled else _columns.usual_labels(columns)
    text = given_text or _columns.guess_text(columns, label or usual) or ()
    if labelled and text and not label:
        label = _columns.guess_label(columns, text, []) or ()
    for found, key in ((text, "data.text_column"), (label, "data.label_column")):
        if not found and (labelled or found is text):
            raise columns.fault("it is not clear which column is meant", key, where)
    header = data.header
    if table.format in ("csv", "tsv"):
        header = columns.names is not None
    settled = {
        "text_column": _named(columns, text),
        "label_column": _named(columns, label) if label else None,
        "header": header,
    }
    if text != given_text or label != given_label:
        say(f"{where}: {_told(settled)} (guessed; the columns are {columns})")
    return data.model_copy(update=settled)


def _told(settled: dict[str, Any]) -> str:
    said = [f"data.{key}={value!r}" for key, value in settled.items() if value not in (None, "auto")]
    return ", ".join(said)


def _numbers(columns: Columns, wanted: Any, key: str, where: str) -> tuple[int, ...]:
    several = wanted if isinstance(wanted, tuple) else () if wanted is None else (wanted,)
    return tuple(columns.find(each, key, where) for each in several)


def _named(columns: Columns, numbers: Sequence[int]) -> Any:
    named = tuple(columns.label(number) for number in numbers)
    return named if len(named) > 1 else named[0]


def _as_texts(record: Record) -> list[str]:
    values = record.values or ()
    return [str(value) for value in (values.values() if isinstance(values, dict) else values)]


@dataclass(frozen=True)
class _Picked:
    """The columns of one table that rows are made of."""

    table: Table
    data: DataConfig
    path: str
    labelled: bool
    text: tuple[int, ...] = field(init=False)
    label: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        columns, data = self.table.columns, self.data
        text = _numbers(columns, data.text_column, "data.text_column", self.path)
        label: tuple[int, ...] = ()
        if self.labelled:
            label = _numbers(columns, data.label_column, "data.label_column", self.path)
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "label", label)
