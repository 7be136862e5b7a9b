"""Tables row by row: JSON, Parquet, hub data sets, and the text files that hold rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmkit.data import delimited, hub, json_rows
from llmkit.data.columns import Columns, Numbers
from llmkit.data.delimited import Record, peek
from llmkit.data.reading import LONGEST_LINE, Reading, too_long
from llmkit.data.sources import Source
from llmkit.errors import DataError

_PARQUET_ROWS = 256
_PARQUET_BUFFER = 1 << 20  # without it a whole row group is read at once


@dataclass(frozen=True)
class Table:
    """A table that was opened: its columns are known, its rows are read once."""

    format: str
    columns: Columns
    sample: Callable[[], list[Record]]
    """The first rows."""
    records: Callable[[Sequence[int]], Iterator[Record]]
    """All rows; only these columns need to have their values."""


def open_table(source: Source, reading: Reading, labelled: bool = False) -> Table:
    """A source as a table; `labelled` says that its rows should have labels.

    Opening it and reading its rows raises DataError with file, line and row for what is broken.
    """
    format = delimited.format_of(source, reading, labelled)
    if format == "parquet":
        return _open_parquet(source, reading)
    if format == "hub":
        columns, records = _open_keyed(_told_by_row(_hub_rows(source, reading)))
    elif format in ("jsonl", "json"):
        read = json_rows.by_line if format == "jsonl" else json_rows.spanning
        columns, records = _open_keyed(_told_by_row(read(source, reading)))
    else:
        open_text = delimited.open_fields if format in ("csv", "tsv") else delimited.open_lines
        columns, rows = open_text(source, reading, format)
        records = _told_by_row(rows)
    sample, records = peek(records, _size)
    return Table(format, columns, lambda: [row for row in sample if row.number], lambda _: records)


def of_records(format: str, records: Sequence[Record]) -> Table:
    """Rows that were read already, as a table; lines of text are one column without a name."""
    if format == "txt":
        return Table(format, Columns(("text",), ()), lambda: [], lambda _: iter(records))
    columns, rows = _open_keyed(iter(records))
    return Table(format, columns, lambda: list(records), lambda _: rows)


def texts(source: Source, reading: Reading) -> Iterator[str]:
    """The text of each row, in order; a blank line of a file is a row without text.

    Of several text columns the texts are joined by a space. Raises DataError with file and line for
    a row that is broken or holds no string, and where the text column is not there or not known.
    """
    table = open_table(source, reading)
    numbers = _text_columns(table.columns, reading, str(source.path)) if len(table.columns) else ()
    for record in table.records(numbers):
        if record.values is None:
            yield ""
        else:
            yield " ".join(text(record, table.columns, number) for number in numbers)


def text(record: Record, columns: Columns, number: int) -> str:
    """The text that a row has in a column; raises DataError where it has none."""
    if isinstance(record.values, list):
        return record.values[number]
    return as_text(field(record, columns, number), columns.address(number), record.where)


def text_or_empty(record: Record, columns: Columns, number: int) -> str:
    """The text that a row has in a column; null is an empty one."""
    if field(record, columns, number) is None:
        return ""
    return text(record, columns, number)


def as_text(value: Any, name: str | int, where: str) -> str:
    """A value of a row as a text; raises DataError, with its name, for what is none."""
    if not isinstance(value, str):
        raise DataError(
            f"{name!r} of this row is {'null' if value is None else type(value).__name__}, no text",
            where=where,
            next="name another column, or correct the row",
        )
    if len(value) > LONGEST_LINE:
        raise too_long(where)
    try:
        value.encode()
    except UnicodeEncodeError as fault:
        raise DataError(
            f"{name!r} of this row holds half of a surrogate pair, which is no character",
            where=where,
            next="write characters outside the basic plane as two \\u escapes, or as themselves",
        ) from fault
    return value


def field(record: Record, columns: Columns, number: int) -> Any:
    """The value that a row has in a column; raises DataError where it has no such column."""
    if isinstance(record.values, list):
        return record.values[number]
    assert record.values is not None
    name = str(columns.address(number))
    if name not in record.values:
        raise DataError(
            f"this row has no {name!r}; it has {Columns(tuple(record.values), ())}",
            where=record.where,
            next="every row needs the same columns",
        )
    return record.values[name]


def in_row(fault: DataError, number: int) -> DataError:
    """The same fault, which says in which data row it came."""
    return DataError(f"data row {number}: {fault.what}", where=fault.where, next=fault.next)


def _text_columns(columns: Columns, reading: Reading, where: str) -> Numbers:
    """The columns that hold the text: those that are named, or `text`, or the only one."""
    key, wanted = "data.text_column", reading.data.text_column
    if wanted is None and columns.names and columns.names.count("text") == 1:
        return (columns.names.index("text"),)
    if wanted is None and len(columns) == 1:
        return (0,)
    if wanted is None and "text" not in (columns.names or ()):
        raise columns.fault("no column is called 'text', and there are several", key, where)
    return columns.find_all("text" if wanted is None else wanted, key, where)


def _told_by_row(records: Iterator[Record]) -> Iterator[Record]:
    """The same rows; a fault says in which row it came."""
    number = 0
    try:
        for record in records:
            number = max(number, record.number)
            yield record
    except DataError as fault:
        raise in_row(fault, number + 1) from fault


def _size(record: Record) -> int:
    values = record.values
    if isinstance(values, dict):
        return sum(len(value) for value in values.values() if isinstance(value, str | bytes))
    return sum(map(len, values or ()))


def _open_keyed(records: Iterator[Record]) -> tuple[Columns, Iterator[Record]]:
    """The columns of rows that have their values by name are those of the first."""
    before: list[Record] = []
    for record in records:
        before.append(record)
        if isinstance(record.values, dict):
            first = tuple(map(str, record.values.values()))
            columns = Columns(tuple(record.values), first, keyed=True)
            return columns, _chain(before, records)
    return Columns((), (), keyed=True), iter(before)


def _chain(before: list[Record], after: Iterator[Record]) -> Iterator[Record]:
    yield from before
    yield from after


def _open_parquet(source: Source, reading: Reading) -> Table:
    with _parquet(source) as file:
        names = tuple(file.schema_arrow.names)
        share = source.n_bytes // max(1, file.metadata.num_rows)

    def records(numbers: Sequence[int]) -> Iterator[Record]:
        return _told_by_row(rows(numbers))

    def rows(numbers: Sequence[int]) -> Iterator[Record]:
        wanted = [names[number] for number in numbers] or None
        with _parquet(source) as file:
            number = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=wanted):
                for row in _python_rows(batch, f"{source.path} row", number):
                    number += 1
                    yield Record(number, f"{source.path} row {number}", row)
                reading.advance(share * len(batch))

    def sample() -> list[Record]:
        return peek(records(()), _size)[0]

    return Table("parquet", Columns(names, (), keyed=True), sample, records)


def _python_rows(batch: Any, where: str, before: int) -> list[dict[str, Any]]:
    """The rows of a batch; a text that is not UTF-8 raises DataError with its row."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError as fault:
        number = next(row for row in range(len(batch)) if not _is_text(batch.slice(row, 1)))
        raise DataError(
            f"a text of this row is not UTF-8: {fault}",
            where=f"{where} {before + number + 1}",
            next="write the file anew with its texts as UTF-8",
        ) from fault


def _is_text(row: Any) -> bool:
    try:
        row.to_pylist()
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def _parquet(source: Source) -> Iterator[Any]:
    try:
        path = os.fsencode(str(source.path))  # which need not be UTF-8
        with (
            pa.OSFile(path) as stream,
            pq.ParquetFile(stream, buffer_size=_PARQUET_BUFFER) as file,
        ):
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as fault:
        raise DataError(
            f"{source.path} is no parquet file that can be read: {fault}",
            where=str(source.path),
            next="check its download; it must end as it begins, with the four bytes PAR1",
        ) from fault


def _hub_rows(source: Source, reading: Reading) -> Iterator[Record]:
    assert isinstance(source.path, hub.DataSet)
    for number, row in enumerate(hub.rows(source.path), 1):
        reading.advance(0)
        yield Record(number, f"{source.path} row {number}", row)
