"""Decompress and decode a source in chunks of bounded size."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llmkit.config.schema import DataConfig
from llmkit.data.readers import formats
from llmkit.data.readers.files import Source
from llmkit.errors import DataError

CHUNK = 1 << 18
"""Number of bytes per read."""

LONGEST_LINE = 64 << 20
"""Maximum number of characters in one line or field of a table."""


@dataclass
class Reading:
    """How to read sources, and what was found while reading."""

    data: DataConfig
    advance: Callable[[int], None]
    """Called with the number of bytes read since its last call."""
    undecodable: int = 0
    """Number of invalid bytes that were replaced or ignored."""


def chunks(source: Source, reading: Reading) -> Iterator[str]:
    """The text of a source in chunks, without a byte order mark.

    Raises DataError for binary data, and for bytes that are invalid in the encoding, with their
    position, after the text before them has been yielded.
    """
    decoder = _Decoder(source, reading)
    start = source.begin == 0
    for chunk in raw(source, reading.advance):
        if start and formats.is_binary(chunk, decoder.encoding):
            raise formats.binary(str(source.path))
        if text := decoder.decode(chunk):
            yield text.removeprefix("\ufeff") if start else text
            start = False
        decoder.check()
    if text := decoder.decode(b"", final=True):
        yield text
    decoder.check()


def raw(source: Source, advance: Callable[[int], None]) -> Iterator[bytes]:
    """The decompressed bytes of a source, or of its range, for which it must not be compressed; a
    damaged or truncated archive raises DataError."""
    try:
        path = os.fsencode(str(source.path))  # which need not be UTF-8
        with pa.OSFile(path) as file, _unpacked(file, source.compression) as stream:
            reported = source.begin
            if source.begin:
                file.seek(source.begin)
            while chunk := stream.read(_next_size(source, reported)):
                advance(file.tell() - reported)
                reported = file.tell()
                yield chunk
    except OSError as fault:
        raise DataError(
            f"{source.path} cannot be read: {fault}",
            where=str(source.path),
            next="check its permissions, its download and its suffix, or remove it from the list",
        ) from fault


def _next_size(source: Source, position: int) -> int:
    return CHUNK if source.end is None else min(CHUNK, source.end - position)


def line_pieces(parts: Iterator[str]) -> Iterator[str]:
    r"""The text line by line, each with its end `\n`; a long line is yielded in several pieces.

    Only `\n` ends a line. A `\r` is never the last character of a piece unless the text ends there.
    """
    held = ""
    for part in parts:
        for line in io.StringIO(held + part, newline="\n"):
            held = ""
            if line.endswith("\r"):
                line, held = line[:-1], "\r"
            if line:
                yield line
    if held:
        yield held


def lines(source: Source, reading: Reading) -> Iterator[str]:
    r"""The whole lines of a source, each with its end; only `\n` ends a line.

    Raises DataError for a line longer than LONGEST_LINE, before it fills the memory.
    """
    pieces: list[str] = []
    size, number = 0, 1
    for piece in line_pieces(chunks(source, reading)):
        pieces.append(piece)
        size += len(piece)
        if size > LONGEST_LINE:
            raise too_long(f"{source.path}:{number}")
        if piece.endswith("\n"):
            yield "".join(pieces)
            pieces.clear()
            size, number = 0, number + 1
    if pieces:
        yield "".join(pieces)


def too_long(where: str) -> DataError:
    """The error for a line or field longer than LONGEST_LINE."""
    return DataError(
        f"a line or field of this table is longer than {LONGEST_LINE >> 20} MiB",
        where=where,
        next="break it up, or give the text as a plain text file, where a line may have any length",
    )


def _unpacked(file: Any, compression: str) -> Any:
    if not compression:
        return nullcontext(file)
    return pa.CompressedInputStream(file, {"gz": "gzip", "zst": "zstd"}[compression])


class _Decoder:
    """Decodes a stream and tracks the position of each invalid byte."""

    def __init__(self, source: Source, reading: Reading) -> None:
        self.source, self.reading = source, reading
        self.encoding = source.encoding or reading.data.encoding
        self.decoder = codecs.getincrementaldecoder(self.encoding)("strict")
        self.offset = source.begin  # bytes fed so far
        self.line = 1
        self.fault: DataError | None = None

    def decode(self, chunk: bytes, final: bool = False) -> str:
        state = self.decoder.getstate()
        try:
            text = self.decoder.decode(chunk, final)
        except UnicodeDecodeError as fault:
            if self.reading.data.errors == "strict":
                self.fault = self._error(fault, state[0])
                self.decoder.setstate((b"", state[1]))
                return self.decoder.decode(fault.object[: fault.start])
            text = self._lenient(chunk, final, state)
        self.offset += len(chunk)
        if self.source.line_end == "\r":
            text = text.replace("\r", "\n")
        self.line += text.count("\n")
        return text

    def check(self) -> None:
        """Raise DataError if the text decoded last ends before an invalid byte."""
        if self.fault:
            raise self.fault

    def _lenient(self, chunk: bytes, final: bool, state: tuple[bytes, int]) -> str:
        mark = "\ufffd" if self.reading.data.errors == "replace" else ""
        text: list[str] = []
        self.decoder.setstate(state)
        # Every invalid byte costs a copy of the rest: short slices keep that cheap.
        slices = [chunk[i : i + 1024] for i in range(0, len(chunk), 1024)] or [b""]
        for number, rest in enumerate(slices, 1):
            while True:
                state = self.decoder.getstate()
                try:
                    text.append(self.decoder.decode(rest, final and number == len(slices)))
                    break
                except UnicodeDecodeError as fault:
                    self.decoder.setstate((b"", state[1]))
                    text += self.decoder.decode(fault.object[: fault.start]), mark
                    self.reading.undecodable += fault.end - fault.start
                    rest = fault.object[fault.end :]
        return "".join(text)

    def _error(self, fault: UnicodeDecodeError, pending: bytes) -> DataError:
        place = self.offset - len(pending) + fault.start
        line = self.line + fault.object[: fault.start].count(b"\n")
        return DataError(
            f"byte 0x{fault.object[fault.start]:02x} at offset {place} is not {self.encoding}: "
            f"{fault.reason}",
            where=f"{self.source.path}:{line}",
            next="data.encoding=NAME if the file has another encoding (latin-1, gb18030, utf-16), "
            "data.errors=replace to replace such bytes by a mark, or `llmkit clean`, which finds "
            "the encoding of each file",
        )
