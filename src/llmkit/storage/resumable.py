"""Files of results from which a job that was stopped resumes: no result is lost or written twice.

Those of `generate` are lines that stand in the file at once; what they were made with stands beside
it. Those of `predict` stand in parts under another name until the file is whole, beside a note that
says how much of them is whole, and what they were made with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llmkit.errors import ConfigError, DataError, RunBusy, WriteError
from llmkit.progress import Say
from llmkit.storage import atomic
from llmkit.storage.lock import try_lock

SETTINGS = ".settings.json"
"""Ends the name of the file beside lines that says what they were made with."""


class Results:
    """An open file of results that only this process writes."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self.file = path, file

    def append(self, text: str) -> None:
        """Adds text, which outlasts a kill when this returns; raises WriteError."""
        try:
            self.file.write(text.encode("utf-8", "backslashreplace"))
            self.file.flush()
        except OSError as error:
            raise atomic.cannot_write(error, self.path) from error

    def flush(self) -> None:
        """Makes the results outlast a power loss; raises WriteError."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise atomic.cannot_write(error, self.path) from error


class Lines(Results):
    """Results as lines of JSON, in place."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        super().__init__(path, file)
        self.done = _whole_lines(file, path)
        """The results that the file holds already."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds a result."""
        self.append(json.dumps(record, ensure_ascii=False) + "\n")


class Parts(Results):
    """Results in parts, until the file is whole."""

    def __init__(self, path: Path, file: IO[bytes], made_with: Mapping[str, Any], say: Say) -> None:
        super().__init__(path, file)
        self.made_with = made_with
        self.results = _whole_parts(file, path, made_with, say)
        """How many results the parts hold."""

    def add(self, text: str, results: int) -> None:
        """Adds a part with so many results; it outlasts a power loss when this returns."""
        self.append(text)
        self.flush()
        self.results += results
        note = {"made_with": self.made_with, "results": self.results, "bytes": self.file.tell()}
        atomic.replace_text(note_of(self.path), json.dumps(note, ensure_ascii=False) + "\n")


@contextmanager
def open_lines(path: Path, settings: Mapping[str, Any]) -> Iterator[Lines]:
    """The lines of a job with these settings, to begin or to resume; a torn last line is cut off.

    Raises ConfigError where they were made with other settings, WriteError where the file is none
    of ours or cannot be written, RunBusy while another process has it.
    """
    check_settings(path, settings)
    with _held(path, path) as file:
        if not (beside := settings_of(path)).exists():
            atomic.replace_text(beside, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        lines = Lines(path, file)
        yield lines
        lines.flush()


@contextmanager
def open_parts(path: Path, made_with: Mapping[str, Any], say: Say) -> Iterator[Parts]:
    """The parts of a file, to begin or to resume; it takes its name when the block is done.

    Parts that were made with anything else are begun anew, and all are where `made_with` is empty.
    An earlier file of that name stays until then. Bad input takes the parts away; whatever else
    stops the job leaves them. Raises RunBusy while another process writes them, WriteError when the
    disk does not take them.
    """
    partial, note = parts_of(path), note_of(path)
    with _held(partial, path) as file:
        parts = Parts(path, file, made_with, say)
        try:
            yield parts
            try:
                partial.replace(path)
                atomic.flush_directory(path.parent)
            except OSError as error:
                raise atomic.cannot_write(error, path) from error
        except BaseException as error:
            if isinstance(error, DataError) or not (parts.results and made_with):
                partial.unlink(missing_ok=True)
                note.unlink(missing_ok=True)
            raise
        note.unlink(missing_ok=True)


def settings_of(path: Path) -> Path:
    """Where it stands what the lines of a file were made with."""
    return path.with_name(path.name + SETTINGS)


def parts_of(path: Path) -> Path:
    """Where the parts of a file stand until it is whole."""
    return path.with_name(f".{path.name}.parts")


def note_of(path: Path) -> Path:
    """Where it is noted how much of the parts is whole."""
    return path.with_name(f".{path.name}.note.json")


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuses, before any work, lines that are not those of a job with these settings; writes
    nothing."""
    check_ours(path)
    if not (beside := settings_of(path)).exists():
        return
    try:
        made_with = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=str(beside)) from error
    keys = sorted({*made_with, *settings})
    changed = [key for key in keys if made_with.get(key) != settings.get(key)]
    if changed:
        listed = [f"{k} was {made_with.get(k)!r}, is now {settings.get(k)!r}" for k in changed]
        raise ConfigError(
            "the results were made with other settings:\n       " + "\n       ".join(listed),
            where=str(path),
            kept="the results, untouched",
            next="put the old values back to resume, or choose another output",
        )


def check_ours(path: Path) -> None:
    """Raises WriteError where lines cannot be written, or are none of ours."""
    atomic.check_place(path)
    if not settings_of(path).exists() and path.exists() and path.stat().st_size:
        raise WriteError(
            "the file exists, and llmkit did not make it",
            where=str(path),
            next="choose another name; nothing is overwritten that a run did not create",
        )


def count_lines(path: Path) -> int:
    """How many results a file of lines holds."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


@contextmanager
def _held(path: Path, results: Path) -> Iterator[IO[bytes]]:
    """A file to read and append to, which no other process writes; `results` is its final name."""
    try:
        atomic.make_directory(path.parent)
        file = path.open("ab+")
    except OSError as error:
        raise atomic.cannot_write(error, results) from error
    with file:
        # Another process may just have given the file that was opened its final name.
        if not (try_lock(file) and _is_named(file, path)):
            raise RunBusy(
                "another process is writing these results",
                where=str(results),
                kept="the other job, untouched",
                next="wait for it, or choose another output",
            )
        yield file


def _is_named(file: IO[bytes], path: Path) -> bool:
    """Whether the file of this name is the one that is open."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _whole_lines(file: IO[bytes], path: Path) -> list[dict[str, Any]]:
    """The lines that are there; a last one without its end was torn by a kill and is removed."""
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    file.truncate(whole)
    file.seek(0, os.SEEK_END)
    records = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise DataError(
                f"this line is not JSON: {error}",
                where=f"{path}:{number}",
                kept="the file, untouched",
                next="remove the line and those after it, or choose another output",
            ) from error
    return records


def _whole_parts(file: IO[bytes], path: Path, made_with: Mapping[str, Any], say: Say) -> int:
    """The number of results to resume after; everything after them is cut off."""
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
        pass  # without a note that can be read there is nothing to resume
    file.truncate(size if results else 0)
    file.seek(0, os.SEEK_END)
    return results
