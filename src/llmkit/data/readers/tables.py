"""Open any source as a table; read JSON lines, JSON lists, parquet files and hub data sets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmkit.data.readers import delimited, files
from llmkit.data.readers.columns import ColumnNumbers, Columns
from llmkit.data.readers.decode import CHUNK, LONGEST_LINE, Reading, chunks, lines, too_long
from llmkit.data.readers.delimited import Record, peek
from llmkit.data.readers.files import Source
from llmkit.errors import ConfigError, DataError

_SPACE, _AFTER, _IN_LIST = map(re.compile, (r"\s*", r"(\s)*", r"[\s,]*"))
_EXAMPLE = '{"text": "..."}'


def by_line(source: Source, reading: Reading) -> Iterator[Record]:
    """The objects of a JSON lines file; blank lines are not rows."""
    number = 0
    for line_number, line in enumerate(lines(source, reading), 1):
        where = f"{source.path}:{line_number}"
        if not line.strip():
            yield Record(0, where, None)
            continue
        number += 1
        yield Record(number, where, parsed(line, where))


def parsed(line: str, where: str) -> dict[str, Any]:
    """Parse a line as a JSON object; raises DataError with its place if it is not one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise DataError(
            f"this line is not JSON: {fault}",
            where=where,
            next="each line of a .jsonl file is one JSON object",
        ) from fault
    if not isinstance(row, dict):
        raise DataError(
            f"this line holds a JSON {type(row).__name__}, not an object",
            where=where,
            next=f"each line of a .jsonl file is one JSON object such as {_EXAMPLE}",
        )
    return row


def spanning(source: Source, reading: Reading) -> Iterator[Record]:
    """The objects of a JSON list, or concatenated objects that may span lines."""
    held, is_alone = None, False
    for number, (row, line, in_list) in enumerate(_values(source, reading), 1):
        where = f"{source.path}:{line}"
        if not isinstance(row, dict):
            raise DataError(
                f"element {number} is a JSON {type(row).__name__}, not an object",
                where=where,
                next=f"a list of rows holds objects such as {_EXAMPLE}",
            )
        if held:
            yield held
        held, is_alone = Record(number, where, row), number == 1 and not in_list
    if held and is_alone and isinstance(held.values, dict):
        _refuse_columns(held.values, held.where)
    if held:
        yield held


def _refuse_columns(row: dict[str, Any], where: str) -> None:
    """Raises DataError for a file that is one object of lists or objects, such as columns."""
    if row and all(isinstance(value, list | dict) for value in row.values()):
        raise DataError(
            f"this file is one JSON object with {', '.join(map(repr, list(row)[:5]))}, not rows",
            where=where,
            next="write a list of objects, or one object in each line (in pandas: "
            "to_json(FILE, orient='records', lines=True)); data.format=txt reads it as plain text",
        )


def _values(source: Source, reading: Reading) -> Iterator[tuple[Any, int, bool]]:
    """The values of a list, or concatenated values, each with its line number, and whether it is in
    a list."""
    decoder, parts = json.JSONDecoder(), chunks(source, reading)
    text, at, line = "", 0, 1
    between = _SPACE
    while True:
        space = between.match(text, at)
        assert space is not None
        line, at = line + space[0].count("\n"), space.end()
        if at == len(text):
            text, at = next(parts, ""), 0
            if text:
                continue
            if between is _IN_LIST:
                raise _broken(source, line, "the file ends inside its list")
            return
        if between is _SPACE:
            between = _IN_LIST if text[at] == "[" else _AFTER
            at += between is _IN_LIST
        elif between is _IN_LIST and text[at] == "]":
            between, at = _AFTER, at + 1
        else:
            try:
                value, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as fault:
                if len(text) - at > LONGEST_LINE:
                    raise too_long(f"{source.path}:{line}") from fault
                more = "".join(islice(parts, max(1, (len(text) - at) // CHUNK)))
                if not more:
                    raise _broken(source, line, str(fault)) from fault
                text, at = text[at:] + more, 0
                continue
            yield value, line, between is _IN_LIST
            line, at = line + text.count("\n", at, end), end


def _broken(source: Source, line: int, fault: str) -> DataError:
    return DataError(
        f"this is not JSON: {fault}",
        where=f"{source.path}:{line}",
        next="correct it, or data.format=txt if the file is plain text",
    )


_PARQUET_ROWS = 256
_PARQUET_BUFFER = 1 << 20  # without a buffer a whole row group is read at once


@dataclass(frozen=True)
class Table:
    """An open table: its columns are known, its rows are read once."""

    format: str
    columns: Columns
    sample: Callable[[], list[Record]]
    """The first rows."""
    records: Callable[[Sequence[int]], Iterator[Record]]
    """All rows; only these columns need values."""


def open_table(source: Source, reading: Reading, labelled: bool = False) -> Table:
    """Open a source as a table; `labelled` says that its rows should have labels.

    Opening it and reading its rows raise DataError with file, line and row for broken data.
    """
    format = delimited.delimited_format(source, reading, labelled)
    if format == "conll":
        raise ConfigError(
            "CoNLL files hold tagged words, which only taggers read",
            where="data.format",
            next="train a tagger with train.objective=token_classification, or name another format",
        )
    if format == "parquet":
        return _open_parquet(source, reading)
    if format == "hub":
        columns, records = _open_keyed(_with_row_numbers(_hub_rows(source, reading)))
    elif format in ("jsonl", "json"):
        read = by_line if format == "jsonl" else spanning
        columns, records = _open_keyed(_with_row_numbers(read(source, reading)))
    else:
        open_text = delimited.open_fields if format in ("csv", "tsv") else delimited.open_lines
        columns, rows = open_text(source, reading, format)
        records = _with_row_numbers(rows)
    sample, records = peek(records, _size)
    return Table(format, columns, lambda: [row for row in sample if row.number], lambda _: records)


def of_records(format: str, records: Sequence[Record]) -> Table:
    """Rows in memory, as a table; lines of text are one column without a name."""
    if format == "txt":
        return Table(format, Columns(("text",), ()), lambda: [], lambda _: iter(records))
    columns, rows = _open_keyed(iter(records))
    return Table(format, columns, lambda: list(records), lambda _: rows)


def texts(source: Source, reading: Reading) -> Iterator[str]:
    """The text of each row, in order; a blank line is a row without text.

    Texts of several columns are joined by a space. Raises DataError with file and line for a row
    that is broken or holds no string, and if the text column is missing or ambiguous.
    """
    table = open_table(source, reading)
    numbers = text_columns(table.columns, reading, str(source.path)) if len(table.columns) else ()
    for record in table.records(numbers):
        if record.values is None:
            yield ""
        else:
            yield " ".join(text(record, table.columns, number) for number in numbers)


def text_column_names(source: Source, reading: Reading) -> str | int | tuple[str | int, ...] | None:
    """The text columns of a source, by what a config calls them; None if it has no rows."""
    columns = open_table(source, reading).columns
    if not len(columns):
        return None
    found = text_columns(columns, reading, str(source.path))
    names = tuple(columns.label(number) for number in found)
    return names if names[1:] else names[0]


def text(record: Record, columns: Columns, number: int) -> str:
    """The text of a row in a column; raises DataError if there is none."""
    if isinstance(record.values, list):
        value: str = record.values[number]
        return value
    return cell_text(field(record, columns, number), columns.address(number), record.where)


def text_or_empty(record: Record, columns: Columns, number: int) -> str:
    """The text of a row in a column; empty for null."""
    if field(record, columns, number) is None:
        return ""
    return text(record, columns, number)


def cell_text(value: Any, name: str | int, where: str) -> str:
    """A value of a row as text; raises DataError with its name if it is not a string."""
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise DataError(
            f"{name!r} of this row is {kind}, not text",
            where=where,
            next="name another column, or correct the row",
        )
    if len(value) > LONGEST_LINE:
        raise too_long(where)
    try:
        value.encode()
    except UnicodeEncodeError as fault:
        raise DataError(
            f"{name!r} of this row holds half of a surrogate pair, which is not a character",
            where=where,
            next="write characters outside the basic plane as two \\u escapes, or as themselves",
        ) from fault
    return value


def field(record: Record, columns: Columns, number: int) -> Any:
    """The value of a row in a column; raises DataError if the row lacks the column."""
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
    """The same error with the number of its data row."""
    return DataError(f"data row {number}: {fault.what}", where=fault.where, next=fault.next)


def text_columns(columns: Columns, reading: Reading, where: str) -> ColumnNumbers:
    """The text columns: those named by the config, or `text`, or the only one."""
    key, wanted = "data.text_column", reading.data.text_column
    if wanted is None and columns.names and columns.names.count("text") == 1:
        return (columns.names.index("text"),)
    if wanted is None and len(columns) == 1:
        return (0,)
    if wanted is None and "text" not in (columns.names or ()):
        raise columns.fault("no column is called 'text', and there are several", key, where)
    return columns.find_all("text" if wanted is None else wanted, key, where)


def _with_row_numbers(records: Iterator[Record]) -> Iterator[Record]:
    """The same rows; an error names the row that raised it."""
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
    """Rows that hold values by name, and their columns, which are those of the first row."""
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
        return _with_row_numbers(rows(numbers))

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
            next="write the file again with its texts as UTF-8",
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
        path = os.fsencode(str(source.path))  # the name need not be UTF-8
        with (
            pa.OSFile(path) as stream,
            pq.ParquetFile(stream, buffer_size=_PARQUET_BUFFER) as file,
        ):
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as fault:
        raise DataError(
            f"{source.path} is not a readable parquet file: {fault}",
            where=str(source.path),
            next="check its download; a parquet file begins and ends with the four bytes PAR1",
        ) from fault


def _hub_rows(source: Source, reading: Reading) -> Iterator[Record]:
    assert isinstance(source.path, files.DataSet)
    for number, row in enumerate(files.rows(source.path), 1):
        reading.advance(0)
        yield Record(number, f"{source.path} row {number}", row)
