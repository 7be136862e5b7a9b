"""Result files from which an interrupted job resumes: no result is lost or written twice.

`generate` appends JSON lines to the final file; a file beside it records their settings. `predict`
appends parts to a temporary file, which is renamed when it is complete; a note beside it records
how much is valid, and the settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llmkit.errors import ConfigError, DataError, RunBusy, WriteError, listed
from llmkit.progress import Say
from llmkit.storage import atomic
from llmkit.storage.atomic import is_named, try_lock
from llmkit.storage.outputs import settings_of
from llmkit.storage.strict_json import json_text


class Results:
    """An open result file, locked so that only this process writes it."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self.file = path, file

    def append(self, text: str) -> None:
        """Appends text, which survives a kill once this returns; raises WriteError."""
        try:
            self.file.write(text.encode("utf-8", "backslashreplace"))
            self.file.flush()
        except OSError as error:
            raise atomic.cannot_write(error, self.path) from error

    def flush(self) -> None:
        """Flushes the results to disk, so that they survive a power loss; raises WriteError."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise atomic.cannot_write(error, self.path) from error


class ResultLines(Results):
    """Results as JSON lines in the final file."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        super().__init__(path, file)
        self.done = _whole_lines(file, path)
        """The results that the file already holds."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a result."""
        self.append(json_text(record) + "\n")


class ResultParts(Results):
    """Results in a temporary file, appended in parts until the file is complete."""

    def __init__(self, path: Path, file: IO[bytes], made_with: Mapping[str, Any], say: Say) -> None:
        super().__init__(path, file)
        self.made_with = made_with
        self.results = _whole_parts(file, path, made_with, say)
        """Number of results in the parts so far."""

    def add(self, text: str, results: int) -> None:
        """Appends a part with this number of results; it survives a power loss once this
        returns."""
        self.append(text)
        self.flush()
        self.results += results
        note = {"made_with": self.made_with, "results": self.results, "bytes": self.file.tell()}
        atomic.replace_text(note_of(self.path), json.dumps(note, ensure_ascii=False) + "\n")


@contextmanager
def open_result_lines(path: Path, settings: Mapping[str, Any]) -> Iterator[ResultLines]:
    """Opens the result lines of a job with these settings, new or to resume; an incomplete last
    line is removed.

    Raises ConfigError if they were made with other settings, WriteError if llmkit did not create
    the file or it cannot be written, and RunBusy while another process writes it.
    """
    check_result_settings(path, settings)
    with _held(path, path) as file:
        if not (beside := settings_of(path)).exists():
            atomic.replace_text(beside, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        lines = ResultLines(path, file)
        yield lines
        lines.flush()


@contextmanager
def open_result_parts(path: Path, made_with: Mapping[str, Any], say: Say) -> Iterator[ResultParts]:
    """Opens the parts of a file, new or to resume; the file gets its name when the block ends.

    Parts with another `made_with` are discarded, and so are all parts when `made_with` is empty. An
    earlier file of that name is kept until the new one is complete. A DataError removes the parts;
    any other interruption keeps them. Raises RunBusy while another process writes the parts, and
    WriteError when writing fails.
    """
    partial, note = parts_of(path), note_of(path)
    with _held(partial, path) as file:
        parts = ResultParts(path, file, made_with, say)
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


def parts_of(path: Path) -> Path:
    """The path of a file's parts until the file is complete."""
    return path.with_name(f".{path.name}.parts")


def note_of(path: Path) -> Path:
    """The path of the note that records how much of the parts is valid."""
    return path.with_name(f".{path.name}.note.json")


def check_result_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuses, before any work and without writing, lines that were made with other settings.

    Raises ConfigError, WriteError as `check_result_file`, and DataError for unreadable settings.
    """
    check_result_file(path)
    if not (beside := settings_of(path)).exists():
        return
    try:
        made_with = dict(json.loads(beside.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"cannot read the settings: {error}",
            where=str(beside),
            kept="the results, untouched",
            next="restore this file to resume, or choose another output",
        ) from error
    keys = sorted({*made_with, *settings})
    changed = [key for key in keys if made_with.get(key) != settings.get(key)]
    if changed:
        lines = [f"{k} was {made_with.get(k)!r}, is now {settings.get(k)!r}" for k in changed]
        raise ConfigError(
            f"the results were made with other settings:\n       {listed(lines)}",
            where=str(path),
            kept="the results, untouched",
            next="restore the old values to resume, or choose another output",
        )


def check_result_file(path: Path) -> None:
    """Raises WriteError if lines cannot be written, or llmkit did not create the file."""
    atomic.check_writable(path)
    if not settings_of(path).exists() and path.exists() and path.stat().st_size:
        raise WriteError(
            "the file exists, and llmkit did not create it",
            where=str(path),
            next="choose another name; llmkit overwrites only files that it created",
        )


def count_lines(path: Path) -> int:
    """The number of results in a file of lines."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


@contextmanager
def _held(path: Path, results: Path) -> Iterator[IO[bytes]]:
    """Opens and locks a file to read and append; errors name the file's final path, `results`."""
    try:
        atomic.make_directory(path.parent)
        file = path.open("ab+")
    except OSError as error:
        raise atomic.cannot_write(error, results) from error
    with file:
        # Another process may have just renamed the file that was opened.
        if not (try_lock(file) and is_named(file, path)):
            raise RunBusy(
                "another process is writing these results",
                where=str(results),
                kept="the other job, untouched",
                next="wait for it, or choose another output",
            )
        yield file


def _whole_lines(file: IO[bytes], path: Path) -> list[dict[str, Any]]:
    """The complete lines; an incomplete last one, left by a kill, is removed from the file."""
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
    """The number of valid results, to resume after; everything after them is truncated."""
    size = os.fstat(file.fileno()).st_size
    results = 0
    try:
        note = json.loads(note_of(path).read_text(encoding="utf-8"))
        if made_with and note["made_with"] == made_with and int(note["bytes"]) <= size:
            results, size = int(note["results"]), int(note["bytes"])
            say(f"resuming after {results:,} results")
        elif size:
            say("the partial results were made with other settings; starting over")
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass  # without a readable note there is nothing to resume
    file.truncate(size if results else 0)
    file.seek(0, os.SEEK_END)
    return results
