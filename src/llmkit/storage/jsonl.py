"""Metrics as JSON lines: only complete lines, truncated to a checkpoint's length on resume."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmkit.errors import DataError, WriteError


class JsonLines:
    """A file of one JSON object per line, appended to by one process.

    Raises WriteError when a line cannot be written; earlier lines are kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Appends one line, completely or not at all."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        before = self.size
        try:
            with self._writing(), self.path.open("ab") as file:
                file.write(line.encode("utf-8", "backslashreplace"))
        except WriteError:
            with suppress(OSError):
                self._cut(before)
            raise

    def flush(self) -> None:
        """Flushes the lines to disk, so that they survive a power loss."""
        if self.path.is_file():
            with self._writing(), self.path.open("ab") as file:
                os.fsync(file.fileno())

    def truncate(self, size: int) -> None:
        """Removes all lines after the first `size` bytes: they belong to steps that will be
        repeated. Creates a missing file."""
        if not self.path.exists():
            with self._writing():
                self.path.touch()
        if self.size != size:
            with self._writing():
                self._cut(size if self.size > size else self._whole_lines())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(
                f"cannot write: {error.strerror}",
                where=str(self.path),
                kept="all checkpoints and all earlier lines",
                next="free some space, then run the same command again to resume",
            ) from error

    def _whole_lines(self) -> int:
        """Bytes up to the end of the last complete line."""
        return self.path.read_bytes().rfind(b"\n") + 1 if self.path.is_file() else 0

    def _cut(self, size: int) -> None:
        if self.path.exists() and self.path.is_file():
            os.truncate(self.path, size)


def last_figures(path: Path, step: int) -> dict[str, Any]:
    """The latest value of each figure up to and including a step."""
    figures: dict[str, Any] = {}
    for record in read_records(path):
        if record.get("step", 0) <= step:
            figures |= record
    return figures


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a JSON-lines file in order; raises DataError for an invalid line."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise DataError(
                    "this line was not written by llmkit",
                    where=f"{path}:{number}",
                    kept="everything",
                    next="remove the line, then run the same command again",
                )
            yield record
