"""Read rows of text files: CSV, TSV, plain lines, and lines that begin with their label."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from llmkit.config.schema import DataConfig
from llmkit.data.readers import columns as _columns
from llmkit.data.readers.columns import Columns
from llmkit.data.readers.decode import LONGEST_LINE, Reading, lines
from llmkit.data.readers.files import Source
from llmkit.errors import DataError
from llmkit.reporting.format import many

SAMPLE_ROWS, SAMPLE_CHARACTERS = 1000, 1 << 20
"""How much of a table is inspected to detect its format."""

_FASTTEXT = "__label__"
_MOST = 0.9
_DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)
"""The first line of a CSV by which spreadsheets learn its separator."""

Item = TypeVar("Item")


class Record(NamedTuple):
    """One row of a table."""

    number: int
    """Counted from 1 without the header and without blank lines."""
    where: str
    values: list[Any] | dict[str, Any] | None
    """By number or by name of the column, text but for CoNLL and JSON; None for a blank line, which
    is not a row."""


def peek(items: Iterable[Item], size: Callable[[Item], int]) -> tuple[list[Item], Iterator[Item]]:
    """A sample (SAMPLE_ROWS items or SAMPLE_CHARACTERS, whichever is less), and all items.

    An error while sampling is raised when the returned items reach it.
    """
    iterator, sample, total = iter(items), [], 0
    try:
        for item in iterator:
            sample.append(item)
            total += size(item)
            if len(sample) == SAMPLE_ROWS or total > SAMPLE_CHARACTERS:
                break
    except DataError as fault:
        return sample, _with_fault(sample, fault)
    return sample, itertools.chain(sample, iterator)


def _with_fault(items: Iterable[Item], fault: DataError) -> Iterator[Item]:
    yield from items
    raise fault


def named_format(source: Source, data: DataConfig) -> str:
    """The format given by the config, or else detected from content and name."""
    asked_for_json = data.format == "jsonl" and source.format == "json"
    given = data.format == "auto" or source.format == "hub" or asked_for_json
    return source.format if given else data.format


def delimited_format(source: Source, reading: Reading, labelled: bool) -> str:
    """The format of a source, from the config, its name or its first lines.

    Raises DataError for a file that should hold labels if their place cannot be detected.
    """
    data, format = reading.data, named_format(source, reading.data)
    if data.format == "auto" and data.delimiter == "auto" and format == "tsv":
        sample = _sample(source, data)
        return "csv" if sample and "\t" not in sample[0] and _has_fields(sample) else "tsv"
    if format != "txt" or data.format == "txt":
        return format
    if data.delimiter != "auto":
        return "tsv" if data.delimiter == "\t" else "csv"
    sample = _sample(source, data)
    kept = [line.rstrip("\r\n") for line in sample if line.strip()]
    found = table_format(kept, data) or _format_of(kept, labelled)
    if found:
        return found
    raise DataError(
        "the lines of this file give no clue where the text ends and the label begins",
        where=str(source.path),
        next="data.format=csv, tsv, jsonl, label_text (label, space, text) or fasttext",
    )


def table_format(sample: list[str], data: DataConfig) -> str | None:
    """`csv` or `tsv` if the first of these lines is a header and all lines have as many fields.

    A header has a usual name of a text or label column, or one that the config gives.
    """
    if not sample:
        return None
    delimiter = _delimiter(sample[:1])
    names = [name.strip().strip('"') for name in sample[0].split(delimiter)]
    usual = _columns.TEXT_NAMES | _columns.LABEL_NAMES | {"prompt"}
    known = any(name.lower() in usual or name in wanted(data) for name in names)
    if not known or len(names) < 2 or not _columns.looks_like_header([names]):
        return None
    if delimiter == "\t":
        return "tsv" if all(line.count("\t") == len(names) - 1 for line in sample) else None
    widths = _widths(sample, delimiter)
    return "csv" if widths and set(widths) == {len(names)} else None


def _sample(source: Source, data: DataConfig) -> list[str]:
    """The first lines; bytes that cannot be decoded are reported when the rows are read."""
    lenient = Reading(data.changed(errors="replace"), lambda n_bytes: None)
    return peek(lines(source, lenient), len)[0]


def _has_fields(sample: list[str]) -> bool:
    """Whether some CSV separator splits all rows into the same number of fields, at least two."""
    widths = _widths(sample, _delimiter(sample))
    return len(set(widths)) == 1 and widths[0] > 1


def open_lines(source: Source, reading: Reading, format: str) -> tuple[Columns, Iterator[Record]]:
    """The rows of a file in which each line is a text, with or without a label before it."""
    if format == "txt":
        return Columns(("text",), ()), (
            Record(number, f"{source.path}:{number}", [line.rstrip("\r\n")])
            for number, line in enumerate(lines(source, reading), 1)
        )
    split = _split_fasttext if format == "fasttext" else _split_label
    return Columns(("label", "text"), (), keyed=True), _labelled_lines(source, reading, split)


def open_fields(source: Source, reading: Reading, format: str) -> tuple[Columns, Iterator[Record]]:
    """The rows of a csv, in which quotes enclose fields, or of a tsv, in which they are text."""
    split = _split_csv if format == "csv" else _split_tsv
    some, rows = peek(split(source, reading), lambda item: sum(map(len, item[0])))
    if len(some) < SAMPLE_ROWS and not any(field.strip() for row, _ in some for field in row):
        deque(rows, maxlen=0)  # raises the error that ended the sample, if any
        return Columns(None, ()), iter(())  # only white space
    sample = [row for row, _ in some if row] or [[]]
    first = tuple(name.strip() for name in sample[0])
    header = bool(first) and _has_header(reading.data, sample)
    columns = Columns(first if header else None, () if header else tuple(sample[0]))
    return columns, _records(rows, source, max(1, len(first)), header, format)


def _has_header(data: DataConfig, sample: list[list[str]]) -> bool:
    if data.header != "auto":
        return data.header
    named = any(isinstance(each, str) for each in wanted(data))
    return named or _columns.looks_like_header(sample)


def wanted(data: DataConfig) -> list[str | int]:
    """The text and label columns named by a config."""
    given = [*_several(data.text_column), *_several(data.label_column)]
    return [column for column in given if column is not None]


def _several(column: Any) -> tuple[Any, ...]:
    return column if isinstance(column, tuple) else (column,)


def _records(
    rows: Iterator[tuple[list[str], int]], source: Source, width: int, header: bool, format: str
) -> Iterator[Record]:
    number = 0
    for row, line in rows:
        where = f"{source.path}:{line}"
        if not row and width > 1:
            yield Record(0, where, None)
            continue
        fields = row or [""]
        if len(fields) != width:
            raise _ragged(len(fields), width, where, format)
        if header:
            header = False
            continue
        number += 1
        yield Record(number, where, fields)


def _ragged(found: int, width: int, where: str, format: str) -> DataError:
    return DataError(
        f"this row has {many(found, 'field')}, expected {width} as in the first row",
        where=where,
        next="correct the row, or its quotes; data.delimiter=... if fields use another separator"
        if format == "csv"
        else "correct the row; data.format=csv if quotes enclose tabs and line breaks",
    )


def _split_csv(source: Source, reading: Reading) -> Iterator[tuple[list[str], int]]:
    csv.field_size_limit(LONGEST_LINE)
    delimiter = reading.data.delimiter
    sample, text = peek(_without_nul(source, reading), len)
    named = _SEPARATOR.fullmatch(sample[0]) if sample else None
    if named:
        next(text)
    if delimiter == "auto":
        delimiter = named[1] if named else _delimiter(sample)
    reader = csv.reader(text, strict=True, delimiter=delimiter)
    while True:
        number = reader.line_num + (2 if named else 1)
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as fault:
            where = f"{source.path}:{number}"
            if "field limit" in str(fault):
                raise DataError(
                    f"a field of this row is longer than {LONGEST_LINE >> 20} MiB",
                    where=where,
                    next="close its quote if one is open, else split the field",
                ) from fault
            raise DataError(
                f"the row that begins here is not CSV: {fault}",
                where=where,
                next='put a field with a quote, delimiter or line break in "...", its quotes '
                "doubled; data.format=tsv reads quotes as text",
            ) from fault
        yield row, number


def _delimiter(sample: list[str]) -> str:
    """The separator: of those found in the first row, one that splits all rows consistent."""
    widths = {delimiter: _widths(sample, delimiter) for delimiter in _DELIMITERS}
    candidates = [delimiter for delimiter in _DELIMITERS if widths[delimiter][:1] > [1]]
    consistent = [delimiter for delimiter in candidates if len(set(widths[delimiter])) == 1]
    return (consistent or candidates or [","])[0]


def _widths(sample: list[str], delimiter: str) -> list[int]:
    reader = csv.reader(sample, strict=True, delimiter=delimiter)
    widths: list[int] = []
    try:
        widths.extend(len(row) for row in reader if row)
    except csv.Error:
        # The sample may end inside a quoted field; an earlier error means that quotes do not fit
        # this delimiter.
        if reader.line_num < len(sample):
            widths.append(0)
    return widths


def _split_tsv(source: Source, reading: Reading) -> Iterator[tuple[list[str], int]]:
    delimiter = "\t" if reading.data.delimiter == "auto" else reading.data.delimiter
    for number, line in enumerate(_without_nul(source, reading), 1):
        text = line.rstrip("\r\n")
        yield (text.split(delimiter) if text else [], number)


def _without_nul(source: Source, reading: Reading) -> Iterator[str]:
    for number, line in enumerate(lines(source, reading), 1):
        if "\0" in line:
            raise DataError(
                f"NUL byte in column {line.index(chr(0)) + 1}",
                where=f"{source.path}:{number}",
                next="data.encoding=utf-16 if that is its encoding; otherwise the file is damaged",
            )
        yield line


def _labelled_lines(
    source: Source, reading: Reading, split: Callable[[str], tuple[Any, str]]
) -> Iterator[Record]:
    number = 0
    for line_number, line in enumerate(_without_nul(source, reading), 1):
        where = f"{source.path}:{line_number}"
        if not line.strip():
            yield Record(0, where, None)
            continue
        number += 1
        label, text = split(line.rstrip("\r\n"))
        yield Record(number, where, {"label": label, "text": text})


def _split_label(line: str) -> tuple[str, str]:
    label, _, text = line.partition(" ")
    return label, text


def _split_fasttext(line: str) -> tuple[str | list[str] | None, str]:
    labels = []
    while line.startswith(_FASTTEXT):
        label, *rest = line.split(maxsplit=1)
        labels.append(label.removeprefix(_FASTTEXT))
        line = rest[0] if rest else ""
    return (labels[0] if len(labels) == 1 else labels or None), line


def _format_of(sample: list[str], labelled: bool) -> str | None:
    """What lines say of themselves: fastText's mark, tabs, or first words that come again."""
    if not sample:
        return "txt"
    if sample[0].startswith(_FASTTEXT):
        return "fasttext"
    if not labelled:
        return "txt"
    # A few lines may be broken: reading the rows reports them.
    [(tabs, consistent)] = Counter(line.count("\t") for line in sample).most_common(1)
    if tabs and consistent > _MOST * len(sample):
        return "tsv"
    first = [line.partition(" ") for line in sample]
    distinct = {label for label, _, _ in first}
    full = sum(bool(label and text) for label, _, text in first)
    if 2 * len(distinct) <= len(first) and full > _MOST * len(first):
        return "label_text"
    return None
