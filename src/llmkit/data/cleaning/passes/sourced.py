"""Documents with their origin: the file, the row, and its other columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from llmkit.config.schema import DataConfig
from llmkit.data.readers import delimited, tables
from llmkit.data.readers.decode import LONGEST_LINE, Reading
from llmkit.data.readers.files import Source
from llmkit.data.text.documents import pieces
from llmkit.errors import DataError

File = TypeVar("File")


class SourcedText(NamedTuple):
    """A document and its origin."""

    text: str
    row: int
    """Its number in its file, from 1: the row of a table, or the document of plain text."""
    column: str
    """The column of the text; `text` for plain text."""
    values: dict[str, Any]
    """The other columns of the row."""


def sourced_texts(source: Source, reading: Reading) -> Iterator[SourcedText]:
    """The documents of a source in order, blank ones included.

    Raises the errors of reading, and DataError for a document longer than LONGEST_LINE.
    """
    if delimited.named_format(source, reading.data) == "txt":
        yield from _plain(source, reading)
    else:
        yield from _rows(source, reading)


MOST_SAMPLED_FILES = 16
"""Maximum number of files whose beginnings are a sample."""


def sampled(files: Sequence[File]) -> Sequence[File]:
    """At most MOST_SAMPLED_FILES of the files, evenly spaced."""
    return files[:: -(-len(files) // MOST_SAMPLED_FILES) or 1]


def beginnings(
    sources: Sequence[Source], data: DataConfig, read: list[int], most: int
) -> Iterator[SourcedText]:
    """The first documents of some of the files, about `most` characters; `read` counts the bytes
    that they take on disk."""
    chosen = sampled(sources)

    def advance(n_bytes: int) -> None:
        read[0] += n_bytes

    for source in chosen:
        left, before = most // len(chosen), read[0]
        for document in sourced_texts(source, Reading(data, advance)):
            yield document
            left -= len(document.text) + 1
            if left < 0:
                break
        read[0] = min(read[0], before + source.n_bytes)


def _plain(source: Source, reading: Reading) -> Iterator[SourcedText]:
    parts, size, row = list[str](), 0, 1
    for text, last in pieces(source, reading):
        parts.append(text)
        size += len(text)
        if size > LONGEST_LINE:
            raise DataError(
                f"document {row} is longer than {LONGEST_LINE >> 20} million characters",
                where=str(source.path),
                next="say how its documents are separated: data.document=blank_line, "
                "data.document=line or data.document_separator=TEXT_FILE",
            )
        if last:
            yield SourcedText("".join(parts), row, "text", {})
            parts, size, row = [], 0, row + 1


def _rows(source: Source, reading: Reading) -> Iterator[SourcedText]:
    table = tables.open_table(source, reading)
    columns = table.columns
    if not len(columns):
        return
    number, *others = tables.text_columns(columns, reading, str(source.path))
    if others:
        raise columns.fault("one column is cleaned", "data.text_column", str(source.path))
    names = [str(columns.label(each)) for each in range(len(columns))]
    # Alone it needs no name; beside the column that cleaning adds it does.
    column = names[number] if columns.names is not None and len(names) > 1 else "text"
    for record in table.records(range(len(columns))):
        if record.values is None:
            continue
        text = tables.text_or_empty(record, columns, number)
        if isinstance(record.values, list):
            values = dict(zip(names, record.values, strict=True))
        else:
            values = dict(record.values)
        del values[names[number]]
        yield SourcedText(text, record.number, column, values)
