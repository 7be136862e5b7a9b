"""The text column of tables: jsonl, csv, tsv, parquet and hub data sets, row by row."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmkit.data import hub
from llmkit.data.reading import LONGEST_LINE, Reading, lines, too_long
from llmkit.data.sources import Source
from llmkit.errors import ConfigError, DataError

_PARQUET_ROWS = 256
_PARQUET_BUFFER = 1 << 20  # without it a whole row group is read at once


def texts(source: Source, reading: Reading) -> Iterator[str]:
    """The text of each row, in order; a blank line of a file is a row without text.

    Raises DataError with file and line for a row that is broken or holds no string, and
    ConfigError where the text column is not there or not known.
    """
    readers = {"jsonl": _jsonl, "csv": _csv, "tsv": _tsv, "parquet": _parquet, "hub": _hub}
    return readers[source.format](source, reading)


def _jsonl(source: Source, reading: Reading) -> Iterator[str]:
    column: str | None = None
    for number, line in enumerate(lines(source, reading), 1):
        where = f"{source.path}:{number}"
        if not line.strip():
            yield ""
            continue
        row = _json_object(line, where)
        if column is None:
            column = list(row)[_column(list(row), reading, where)]
        yield _text(row, column, where)


def _json_object(line: str, where: str) -> dict[str, Any]:
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
            next='each line of a .jsonl file is one JSON object such as {"text": "..."}',
        )
    return row


def _csv(source: Source, reading: Reading) -> Iterator[str]:
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(_without_nul(source, reading), strict=True)
    return _fields(_csv_rows(reader, source), source, reading)


def _csv_rows(reader: Any, source: Source) -> Iterator[tuple[list[str], int]]:
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as fault:
            where = f"{source.path}:{number}"
            if "field limit" in str(fault):
                raise too_long(where) from fault
            raise DataError(
                f"the row that begins here is not CSV: {fault}",
                where=where,
                next='a field with a quote, comma or line break stands in "...", its quotes doubled'
                "; text without quoting belongs in a .tsv or .txt file",
            ) from fault
        yield row, number


def _tsv(source: Source, reading: Reading) -> Iterator[str]:
    rows = (
        (line.rstrip("\r\n").split("\t") if line.rstrip("\r\n") else [], number)
        for number, line in enumerate(_without_nul(source, reading), 1)
    )
    return _fields(rows, source, reading)


def _without_nul(source: Source, reading: Reading) -> Iterator[str]:
    for number, line in enumerate(lines(source, reading), 1):
        if "\0" in line:
            raise DataError(
                f"NUL byte in column {line.index(chr(0)) + 1}",
                where=f"{source.path}:{number}",
                next="data.encoding=utf-16 if the file is that; else the file is damaged",
            )
        yield line


def _fields(
    rows: Iterator[tuple[list[str], int]], source: Source, reading: Reading
) -> Iterator[str]:
    """The text field of each row; the first row is the header unless the column is a number."""
    width, column = 0, 0
    for row, number in rows:
        where = f"{source.path}:{number}"
        if not row:
            yield ""
            continue
        if not width:
            width, column = len(row), _column(row, reading, where)
            if not isinstance(reading.data.text_column, int):
                continue
        if len(row) != width:
            raise DataError(
                f"this row has {len(row)} fields and the first row has {width}",
                where=where,
                next="correct the row, or its quotes",
            )
        yield row[column]


def _parquet(source: Source, reading: Reading) -> Iterator[str]:
    number = 0
    try:
        with pq.ParquetFile(source.path, buffer_size=_PARQUET_BUFFER) as file:
            names = file.schema_arrow.names
            name = names[_column(names, reading, str(source.path))]
            share = source.n_bytes // max(1, file.metadata.num_rows)
            for batch in file.iter_batches(_PARQUET_ROWS, columns=[name]):
                for row in batch.to_pylist():
                    number += 1
                    yield _text(row, name, f"{source.path} row {number}")
                reading.advance(share * len(batch))
    except (pa.ArrowException, OSError) as fault:
        raise DataError(
            f"{source.path} is no parquet file that can be read: {fault}",
            where=f"{source.path} after row {number}",
            next="check its download; it must end as it begins, with the four bytes PAR1",
        ) from fault


def _hub(source: Source, reading: Reading) -> Iterator[str]:
    assert isinstance(source.path, hub.DataSet)
    column: str | None = None
    for number, row in enumerate(hub.rows(source.path), 1):
        where = f"{source.path} row {number}"
        if column is None:
            column = list(row)[_column(list(row), reading, where)]
        reading.advance(0)
        yield _text(row, column, where)


def _text(row: dict[str, Any], column: str, where: str) -> str:
    if column not in row:
        raise DataError(
            f"this row has no {column!r}; it has {_listed(list(row))}",
            where=where,
            next="every row needs the text column",
        )
    text = row[column]
    if not isinstance(text, str):
        raise DataError(
            f"{column!r} of this row is {'null' if text is None else type(text).__name__}, no text",
            where=where,
            next="name the column of the text with data.text_column, or correct the row",
        )
    if len(text) > LONGEST_LINE:
        raise too_long(where)
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        raise DataError(
            f"{column!r} of this row holds half of a surrogate pair, which is no character",
            where=where,
            next="write characters outside the basic plane as two \\u escapes, or as themselves",
        ) from fault
    return text


def _column(names: Sequence[str], reading: Reading, where: str) -> int:
    """The number of the text column among the columns that the table has."""
    wanted = reading.data.text_column
    name = "text" if wanted is None else wanted
    if isinstance(name, int):
        if name < len(names):
            return name
        problem = f"data.text_column is {name}, and the last column is number {len(names) - 1}"
    elif names.count(name) == 1:
        return names.index(name)
    elif name in names:
        problem = f"{name!r} is the name of {names.count(name)} columns"
    elif wanted is None and len(names) == 1:
        return 0
    elif wanted is None:
        problem = "no column is called 'text', and there are several"
    else:
        near = difflib.get_close_matches(name, names, 1)
        problem = f"no column is called {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    raise ConfigError(
        problem,
        where=f"data.text_column; {where}",
        next=f"data.text_column=NAME, or a number from 0 (which means a csv or tsv has no header);"
        f" the columns are {_listed(names)}",
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{i} {name[:40]!r}" for i, name in enumerate(names[:20]))
    return shown + (", ..." if len(names) > 20 else "")
