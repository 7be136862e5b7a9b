"""Rows as JSON lines in zstd, as cleaned text is written and read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa


class RowSink(Protocol):
    """What takes rows."""

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Write a row."""


@contextmanager
def writing_rows(path: Path) -> Iterator[RowSink]:
    """Writes rows into a file; equal rows give equal bytes."""
    with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, "zstd") as stream:

        def write(row: Mapping[str, Any]) -> None:
            stream.write(row_line(row))

        yield write


def row_line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of JSON; values that JSON does not have are written as text."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def reading_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that `writing_rows` wrote."""
    held = b""
    with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, "zstd") as stream:
        while chunk := stream.read(1 << 20):
            *lines, held = (held + chunk).split(b"\n")
            yield from map(json.loads, lines)
