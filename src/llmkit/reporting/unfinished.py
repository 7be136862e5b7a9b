"""A file of results that takes its name when it is whole, and that a job which was broken off goes
on with.

Until then its parts stand under another name, beside a note that says how many of them are whole
and what they were made with.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llmkit.errors import DataError, RunBusy
from llmkit.storage import atomic


class Parts:
    """The parts that stand already, and those that are added."""

    def __init__(
        self, path: Path, file: IO[bytes], made_with: Mapping[str, Any], results: int
    ) -> None:
        self.path, self.file, self.made_with = path, file, made_with
        self.results = results
        """How many results the parts hold."""

    def add(self, text: str, results: int) -> None:
        """Adds a part with so many results; it outlasts a kill and a power loss when this returns.

        Raises WriteError when the disk does not take it.
        """
        try:
            self.file.write(text.encode("utf-8", "backslashreplace"))
            self.file.flush()
            os.fsync(self.file.fileno())
            size = self.file.tell()
        except OSError as error:
            raise atomic.cannot_write(error, self.path) from error
        self.results += results
        note = {"made_with": self.made_with, "results": self.results, "bytes": size}
        atomic.replace_text(note_of(self.path), json.dumps(note, ensure_ascii=False) + "\n")


@contextmanager
def opened(path: Path, made_with: Mapping[str, Any], say: Callable[[str], None]) -> Iterator[Parts]:
    """The parts of a file, to begin or to go on with; it takes its name when the block is done.

    Parts that were made with anything else are begun anew, and all are where `made_with` is empty.
    An earlier file of that name stays until then. Bad input takes the parts away; whatever else
    breaks the job off leaves them. Raises RunBusy while another process writes them, WriteError
    when the disk does not take them.
    """
    partial, note = parts_of(path), note_of(path)
    try:
        file = partial.open("ab")
    except OSError as error:
        raise atomic.cannot_write(error, path) from error
    with file:
        _lock(file, path)
        parts = Parts(path, file, made_with, _whole(file, path, made_with, say))
        try:
            yield parts
            _put_in_place(partial, path)
        except BaseException as error:
            if isinstance(error, DataError) or not (parts.results and made_with):
                partial.unlink(missing_ok=True)
                note.unlink(missing_ok=True)
            raise
        note.unlink(missing_ok=True)


def parts_of(path: Path) -> Path:
    """Where a file stands until it is whole."""
    return path.with_name(f".{path.name}.parts")


def note_of(path: Path) -> Path:
    """Where it is noted how much of a file is whole."""
    return path.with_name(f".{path.name}.note.json")


def _put_in_place(partial: Path, path: Path) -> None:
    try:
        partial.replace(path)
        atomic.flush_directory(path.parent)
    except OSError as error:
        raise atomic.cannot_write(error, path) from error


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        busy = not os.path.samestat(os.fstat(file.fileno()), parts_of(path).stat())
    except (BlockingIOError, FileNotFoundError):
        busy = True  # or another process has just given the parts their name
    if busy:
        raise RunBusy(
            "another process is writing this file",
            where=str(path),
            kept="the other job, untouched",
            next="wait for it, or choose another output",
        )


def _whole(
    file: IO[bytes], path: Path, made_with: Mapping[str, Any], say: Callable[[str], None]
) -> int:
    """The number of results that can be gone on with; everything after them is cut off."""
    size = os.fstat(file.fileno()).st_size
    results = 0
    try:
        note = json.loads(note_of(path).read_text(encoding="utf-8"))
        if made_with and note["made_with"] == made_with and int(note["bytes"]) <= size:
            results, size = int(note["results"]), int(note["bytes"])
            say(f"resuming after {results:,} results")
        elif size:
            say("what stands already was made with something else, and is made anew")
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass  # without a note that can be read there is nothing to go on with
    file.truncate(size if results else 0)
    file.seek(0, os.SEEK_END)
    return results
