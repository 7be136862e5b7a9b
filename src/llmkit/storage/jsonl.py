"""Metrics as JSON lines: whole lines only, and a length that a checkpoint can go back to."""

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

    Raises WriteError when the disk does not take a line; what stood in the file stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one line, all of it or nothing."""
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
        """Makes the lines outlast a power loss."""
        if self.path.is_file():
            with self._writing(), self.path.open("ab") as file:
                os.fsync(file.fileno())

    def go_back(self, size: int) -> None:
        """Forgets all lines after the first `size` bytes: they belong to steps that are redone. The
        file is there afterwards."""
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
        """Bytes up to the end of the last line that has one."""
        return self.path.read_bytes().rfind(b"\n") + 1 if self.path.is_file() else 0

    def _cut(self, size: int) -> None:
        if self.path.exists() and self.path.is_file():
            os.truncate(self.path, size)


def last_figures(path: Path, step: int) -> dict[str, Any]:
    """The last value of each figure up to a step."""
    figures: dict[str, Any] = {}
    for record in read_records(path):
        if record.get("step", 0) <= step:
            figures |= record
    return figures


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines, in order; raises DataError for a line that is none."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise DataError(
                    "is no line that llmkit has written",
                    where=f"{path}:{number}",
                    kept="everything",
                    next="remove the line, then run the same command again",
                )
            yield record
