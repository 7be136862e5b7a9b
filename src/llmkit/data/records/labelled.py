"""Read labelled tables: rows with texts, label and other columns, and all rows of one key."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from llmkit.config.schema import DataConfig
from llmkit.data.readers import files, tables
from llmkit.data.readers.columns import Columns
from llmkit.data.readers.decode import Reading
from llmkit.data.readers.delimited import Record
from llmkit.data.readers.files import Source
from llmkit.data.readers.piped import Pipe
from llmkit.data.readers.roles import LABEL, TEXT
from llmkit.data.readers.tables import Table
from llmkit.data.records.labels import Raw
from llmkit.data.records.parts import Counts
from llmkit.errors import DataError

_ARRAY = re.compile(r"\[(\s*[-+\d.]+)+\s*\]")
_CONSTANTS = re.compile(r"\b(true|false)\b")

_CELLS = {"1": True, "0": False, "1.0": True, "0.0": False, "true": True, "false": False}


class Row(NamedTuple):
    """One row of a labelled table."""

    number: int
    """Number of the data row in its file, counted from 1."""
    path: str
    texts: tuple[str, ...]
    """One text, or a pair of texts."""
    label: Raw | None
    """The label as written, without white space around it; None if blank."""
    extra: dict[str, Any]
    """The other columns, by name or number."""
    named: Mapping[str, str] = MappingProxyType({})
    """The text columns by name, with their values."""
    order: tuple[str, ...] = ()
    """All columns except the label, in the order of the table."""
    problem: None = None


def read_rows(
    found: Iterable[Source],
    data: DataConfig,
    *,
    labelled: bool = True,
    extra: bool = True,
    advance: Callable[[int], None] = lambda n_bytes: None,
    counts: Counts | None = None,
) -> Iterator[Row]:
    """The rows of labelled tables, in bounded memory.

    The columns come from `resolve_label_columns`. If rows need not be `labelled`, a line of a plain
    text file is a text, every label is None, and all columns except the text are extra. Two text
    columns form a pair; more are joined by a space. Raises DataError with file and row for broken
    data and missing columns.
    """
    counts = counts or Counts()
    for source in found:
        reading = Reading(data, advance)
        table = tables.open_table(source, reading, labelled)
        if len(table.columns):
            yield from rows_of(table, data, str(source.path), labelled, extra, counts)
        counts.undecodable += reading.undecodable
        files.check_unchanged(source)


def arriving(pipe: Pipe) -> Iterator[Table]:
    """The lines of a pipe as tables: one for each group of lines that arrived together."""
    number = line = 0
    for group in pipe.groups():
        records = []
        for text in group:
            line += 1
            where = f"{pipe.name}:{line}"
            number += pipe.format == "txt" or bool(text.strip())
            records.append(_arrived(pipe.format, text, number, where))
        yield tables.of_records(pipe.format, records)


def _arrived(format: str, text: str, number: int, where: str) -> Record:
    if format == "txt":
        return Record(number, where, [text])
    return Record(number, where, tables.parsed(text, where) if text.strip() else None)


def rows_of(
    table: Table, data: DataConfig, path: str, labelled: bool, extra: bool, counts: Counts
) -> Iterator[Row]:
    """The rows of a table whose columns are resolved."""
    columns = table.columns
    text = columns.find_all(data.text_column, TEXT, path)
    label = columns.find_all(data.label_column, LABEL, path) if labelled else ()
    used = (*text, *label)
    rest = [number for number in range(len(columns)) if number not in used] if extra else []
    for record in table.records([*used, *rest]):
        if record.values is None:
            counts.blank_lines += 1
            continue
        try:
            texts = tuple(tables.text_or_empty(record, columns, number) for number in text)
            written = _label(record, columns, label, data.label_separator)
        except DataError as fault:
            raise tables.in_row(fault, record.number) from fault
        others = other_values(record, columns, used, rest) if extra else {}
        named = {_name(columns, number, text): one for number, one in zip(text, texts, strict=True)}
        order = column_order(record, columns, text, used) if extra else ()
        texts = texts if len(texts) < 3 else (" ".join(texts),)
        yield Row(record.number, path, texts, written, others, named, order)


def _name(columns: Columns, number: int, text: Sequence[int]) -> str:
    """The name of a text column; without one, `text`, or `text1` and `text2`."""
    label = columns.label(number)
    return label if isinstance(label, str) else f"text{text.index(number) + 1 if text[1:] else ''}"


def column_order(
    record: Record, columns: Columns, text: Sequence[int], used: Sequence[int]
) -> tuple[str, ...]:
    """The names of all columns but the label, in the order of the table; `text` and `used` are the
    numbers of the text columns, and of these and the label."""
    if isinstance(record.values, dict):
        labels = {columns.address(number) for number in used if number not in text}
        return tuple(name for name in record.values if name not in labels)
    kept = (number for number in range(len(columns)) if number in text or number not in used)
    return tuple(
        _name(columns, number, text) if number in text else str(columns.label(number))
        for number in kept
    )


def _label(
    record: Record, columns: Columns, numbers: Sequence[int], separator: str | None
) -> Raw | None:
    values = [tables.field(record, columns, number) for number in numbers]
    if len(numbers) > 1:
        names = [str(columns.label(number)) for number in numbers]
        marks = [_mark(value, record.where) for value in values]
        return tuple(name for name, marked in zip(names, marks, strict=True) if marked)
    if not values or values[0] is None or values[0] != values[0]:
        return None
    value = parsed_list(values[0]) if separator is None else values[0]
    if isinstance(value, dict) and all(each in (0, 1, None) for each in value.values()):
        value = [name for name, each in value.items() if each]
    if isinstance(value, list):
        return _several(value, record.where)
    written = _written(value, record.where)
    if separator is not None:
        return tuple(part.strip() for part in written.split(separator) if part.strip())
    return written or None


def parsed_list(value: Any) -> Any:
    """Parse a list written as text by JSON, Python or NumPy; other values are returned
    unchanged."""
    if not (isinstance(value, str) and value.strip().startswith("[") and value.strip()[-1] == "]"):
        return value
    if _ARRAY.fullmatch(value.strip()):
        return [float(each) for each in value.strip()[1:-1].split()]
    try:
        found = ast.literal_eval(_CONSTANTS.sub(lambda m: m[0].title(), value.strip()))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value
    return found if isinstance(found, list) else value


def _several(values: list[Any], where: str) -> tuple[str, ...]:
    """The labels of a list, or its zeros and ones, one for each label."""
    if values[1:] and all(isinstance(each, int | float) and each in (0, 1) for each in values):
        return tuple(str(int(each)) for each in values)
    if any(isinstance(each, float) and not each.is_integer() for each in values):
        raise DataError(
            "the label is a list of fractions; a row either has a label or not",
            where=where,
            next="write 0 or 1 for each label, or the names of the row's labels",
        )
    return tuple(_written(each, where) for each in values)


def _mark(value: Any, where: str) -> bool:
    """Whether a row has the label of a column."""
    marked = _CELLS.get(str(value).strip().lower())
    if marked is None:
        raise DataError(
            f"{value!r} is neither 0 nor 1",
            where=where,
            next=f"with several columns in {LABEL}, each holds 1 if a row has that label, else 0",
        )
    return marked


def _written(value: Any, where: str) -> str:
    """A label as written, or as JSON would write it."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    kind = repr(value) if isinstance(value, float) else type(value).__name__
    raise DataError(
        f"a label is text or a number, and this one is {kind}",
        where=where,
        next=f"name the column of the label with {LABEL}, or correct the row",
    )


def other_values(
    record: Record, columns: Columns, used: Sequence[int], rest: Sequence[int]
) -> dict[str, Any]:
    """The values of a row besides those of the columns in `used`, by name."""
    if isinstance(record.values, dict):
        names = {columns.address(number) for number in used}
        return {name: value for name, value in record.values.items() if name not in names}
    assert record.values is not None
    return {str(columns.label(number)): record.values[number] for number in rest}
