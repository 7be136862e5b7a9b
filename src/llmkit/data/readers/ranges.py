"""Cut sources into ranges of about equal size between whole documents, for separate readers."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from llmkit.config.schema import DataConfig
from llmkit.data.readers import decode, delimited, tables
from llmkit.data.readers.files import Source

RANGE_BYTES = 1 << 25
"""Size of a range of a text, unless that gives more than MOST_RANGES."""

MOST_RANGES = 1 << 14
"""Maximum number of ranges of a text that can be cut anywhere."""

_WINDOW = 1 << 20
_ASCII_BYTES = {"utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1252"}
"""Encodings in which each byte of an ASCII character is that character."""

_BLANK_LINE = re.compile(rb"\n[ \t\r]{,64}\n")
_LONGEST_BLANK = 66  # bytes of a match


def range_bytes(n_bytes: int) -> int:
    """The size of the ranges of this much text."""
    return max(RANGE_BYTES, -(-n_bytes // MOST_RANGES))


def unit_sources(found: Sequence[Source], data: DataConfig, size: int) -> list[list[Source]]:
    """The sources in groups of about `size` bytes, in order: small ones together, and ranges of
    large ones where a byte range of whole documents can be found without reading what precedes.

    Others are in one group however large they are: compressed files, tables other than JSON lines,
    and files that are one document. The groups depend on the sources and the settings alone.
    """
    groups, filled = [list[Source]()], 0
    for source in found:
        for part in _parts(source, data, size):
            n_bytes = n_range_bytes(part)
            if groups[-1] and filled + n_bytes > size:
                groups.append([])
                filled = 0
            groups[-1].append(part)
            filled += n_bytes
    return groups


def n_range_bytes(source: Source) -> int:
    """The number of bytes that are read of a source."""
    return (source.n_bytes if source.end is None else source.end) - source.begin


def is_range(source: Source) -> bool:
    """Whether only a part of a source is read."""
    return bool(source.begin) or source.end is not None


def whole_source(source: Source) -> Source:
    """The source of a range."""
    return replace(source, begin=0, end=None)


def settings_of_range(source: Source, data: DataConfig) -> DataConfig:
    """The settings that read a range as a part of the source: JSON lines have the text column of
    the first row of all."""
    if not source.begin or delimited.named_format(source, data) != "jsonl":
        return data
    reading = decode.Reading(data, lambda n_bytes: None)
    return data.changed(text_column=tables.text_column_names(whole_source(source), reading))


def _parts(source: Source, data: DataConfig, size: int) -> Iterator[Source]:
    border = _border_of(source, data) if source.n_bytes > size else None
    if border is None:
        yield source
        return
    begin = 0
    with pa.OSFile(os.fsencode(str(source.path))) as file:
        for place in range(size, source.n_bytes, size):
            if place > begin:
                if (end := _next_border(file, border, place)) >= source.n_bytes:
                    break
                yield replace(source, begin=begin, end=end)
                begin = end
    yield replace(source, begin=begin)


_Border = bytes | re.Pattern[bytes]
"""What stands between documents."""


def _border_of(source: Source, data: DataConfig) -> _Border | None:
    """What separates the documents of a source; None if it cannot be cut."""
    encoding = source.encoding or data.encoding
    plain = codecs.lookup(encoding).name in _ASCII_BYTES and source.line_end == "\n"
    if source.compression or not plain or data.errors != "strict":
        return None
    format = delimited.named_format(source, data)
    if format == "txt" and data.document_separator is not None:
        return data.document_separator.encode(encoding)
    if format == "txt" and data.document != "line":
        return _BLANK_LINE if data.document == "blank_line" else None
    return b"\n" if format in ("txt", "jsonl") else None


def _next_border(file: Any, border: _Border, place: int) -> int:
    """The beginning of the first document at or after a place; the end of the file if there is
    none."""
    before = 2 * len(border) if isinstance(border, bytes) else _LONGEST_BLANK
    while True:
        low = max(0, place - before)
        file.seek(low)
        window = file.read(_WINDOW + before)
        found = _find(border, window, place - low)
        if found is not None or len(window) <= place - low:
            return low + (len(window) if found is None else found)
        place = low + len(window)


def _find(border: _Border, window: bytes, first: int) -> int | None:
    """The end of the first border that ends at or after a place."""
    if not isinstance(border, bytes):
        ends = (match.end() for match in border.finditer(window))
        return next((end for end in ends if end >= first), None)
    before, at = -len(border), window.find(border)
    while at >= 0:
        # One that overlaps with an earlier occurrence may be part of the text.
        if at + len(border) >= first and at - before >= len(border):
            return at + len(border)
        before, at = at, window.find(border, at + 1)
    return None
