"""A file of results from which a killed job resumes: whole lines, in order, none twice."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llmkit.errors import ConfigError, DataError, RunBusy, WriteError
from llmkit.storage import atomic
from llmkit.storage.outputs import SETTINGS


class Output:
    """The open file: what it holds, and lines that are added."""

    def __init__(self, path: Path, file: IO[bytes], done: list[dict[str, Any]]) -> None:
        self.path, self.file, self.done = path, file, done

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds a line; it stands in the file before this returns, and outlasts a kill."""
        line = json.dumps(record, ensure_ascii=False) + "\n"
        try:
            self.file.write(line.encode("utf-8", "backslashreplace"))
            self.file.flush()
        except OSError as error:
            raise atomic.cannot_write(error, self.path) from error


@contextmanager
def opened(path: Path, settings: Mapping[str, Any]) -> Iterator[Output]:
    """Opens the results of a job with these settings, to begin or to go on.

    A torn last line is cut off. Raises ConfigError where the file was made with other settings,
    WriteError where it is none of ours or cannot be written, RunBusy while another process has it.
    """
    beside = path.with_name(path.name + SETTINGS)
    check(path, settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+")
    except OSError as error:
        raise atomic.cannot_write(error, path) from error
    with file:
        _lock(file, path)
        if not beside.exists():
            atomic.replace_text(beside, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        yield Output(path, file, _whole_lines(file, path))
        os.fsync(file.fileno())


def check(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuses, before any work, a file that is not this job's; writes nothing."""
    check_place(path)
    beside = path.with_name(path.name + SETTINGS)
    if not beside.exists():
        return
    try:
        made_with = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=str(beside)) from error
    keys = sorted({*made_with, *settings})
    changed = [key for key in keys if made_with.get(key) != settings.get(key)]
    if changed:
        told = [f"{k} was {made_with.get(k)!r}, is now {settings.get(k)!r}" for k in changed]
        raise ConfigError(
            "the results were made with other settings:\n       " + "\n       ".join(told),
            where=str(path),
            kept="the results, untouched",
            next="put the old values back to resume, or choose another output",
        )


def check_place(path: Path) -> None:
    """Raises WriteError for a file that cannot be written, or that llmkit did not make."""
    atomic.check_place(path)
    beside = path.with_name(path.name + SETTINGS)
    if not beside.exists() and path.exists() and path.stat().st_size:
        raise WriteError(
            "the file exists, and llmkit did not make it",
            where=str(path),
            next="choose another name; nothing is overwritten that a run did not create",
        )


def lines(path: Path) -> int:
    """How many results a file holds."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunBusy(
            "another process is writing these results",
            where=str(path),
            kept="the other job, untouched",
            next="wait for it, or choose another output",
        ) from error


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
