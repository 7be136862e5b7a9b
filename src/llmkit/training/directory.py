"""The run directory: made or found, held by one process at a time, never another run's."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmkit.config.schema import Config
from llmkit.distributed.launcher import is_main_process
from llmkit.errors import RunBusy, WriteError
from llmkit.storage import atomic
from llmkit.storage.lock import try_lock
from llmkit.storage.outputs import RUN
from llmkit.training import identity

LOCK = ".lock"
OURS = {
    LOCK,
    RUN,
    "config.yaml",
    "metrics.jsonl",
    "timing.jsonl",
    "fingerprints.safetensors",
    "samples.jsonl",
    "checkpoints",
    "final",
    "loss.png",
    "evaluation.json",
    "confusion_matrix_validation.png",
    "confusion_matrix_test.png",
}


def check(config: Config, command: str) -> None:
    """Refuses, before any work, a directory that cannot be this run's; writes nothing.

    Raises WriteError for a path that cannot be written, holds other files, another command's run,
    or a run at all when `resume` is `never`; RunBusy when another process has it.
    """
    if not is_main_process():
        return
    directory = locate(config, command)
    if _writable(directory):
        _check_holdings(directory, command, config.resume)


def locate(config: Config, command: str) -> Path:
    """The run directory: the one named, or one that the same command and config find again."""
    if config.output_dir is not None:
        return Path(config.output_dir).expanduser()
    return identity.default_directory(command, config)


def sizes(config: Config, command: str) -> dict[str, Any] | None:
    """The sizes that were resolved when the run was begun; None for a new run."""
    record = locate(config, command) / RUN
    if not record.exists():
        return None
    found: dict[str, Any] | None = json.loads(record.read_text(encoding="utf-8")).get("settled")
    return found


@contextmanager
def opened(config: Config, command: str) -> Iterator[Path]:
    """The run directory, held while in use; only the main process touches it."""
    directory = locate(config, command)
    if not is_main_process():
        yield directory
        return
    with held(directory):
        yield directory


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Holds the directory for this process; the system lets go whenever and however it ends.

    Raises RunBusy, with the holder, when another process has it.
    """
    try:
        atomic.make_directory(directory)
        file = (directory / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise atomic.cannot_write(error, directory) from error
    with file:
        if not try_lock(file):
            file.seek(0)
            raise RunBusy(
                f"the run directory is in use by {file.read().strip() or 'another process'}",
                where=str(directory),
                kept="the other run, untouched",
                next="wait for it, stop it, or choose another output_dir",
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _command(record: Path) -> str:
    """The command whose run a directory holds."""
    try:
        return str(json.loads(record.read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise WriteError(
            f"holds a run whose {RUN} is damaged ({error})",
            where=str(record),
            kept="the run, untouched",
            next='put it back; {"command": "pretrain"} or the like is enough to resume',
        ) from error


def _writable(directory: Path) -> bool:
    """Whether the directory is there already; raises WriteError when it could not be written."""
    if any("\ud800" <= letter <= "\udfff" for letter in str(directory)):
        raise WriteError(
            "its name is not UTF-8, which libraries cannot write to",
            where=f"output_dir={directory}",
            next="choose another output_dir; in a locale without UTF-8, set LC_ALL=C.UTF-8",
        )
    existing = next(p for p in (directory, *directory.parents) if _exists(p))
    if not existing.is_dir():
        raise WriteError(
            "not a directory",
            where=f"output_dir={directory} ({existing})",
            next="choose another output_dir",
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise WriteError(
            "may not be written", where=f"output_dir={directory}", next="choose another output_dir"
        )
    return existing == directory


def _check_holdings(directory: Path, command: str, resume: str) -> None:
    """Raises when what the directory holds is not a run of this command that may go on."""
    if (directory / LOCK).is_file():
        with held(directory):
            pass
    unfinished = atomic.partial_of(directory / RUN).name
    present = {entry.name for entry in directory.iterdir()} - {LOCK, unfinished}
    if not present:
        return
    record = directory / RUN
    if not record.exists():
        raise WriteError(
            f"holds files that are no run of llmkit ({sorted(present)[0]})",
            where=f"output_dir={directory}",
            next="choose another output_dir; nothing is overwritten that a run did not create",
        )
    found = _command(record)
    if found != command:
        raise WriteError(
            f"holds a run of {found}, not of {command}",
            where=f"output_dir={directory}",
            next="choose another output_dir",
        )
    if resume == "never":
        raise WriteError(
            "holds a run, and resume is `never`",
            where=f"output_dir={directory}",
            kept="that run, untouched",
            next="choose another output_dir, or leave resume out to go on with it",
        )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise WriteError(
            f"{error.strerror}", where=f"output_dir={path}", next="choose another output_dir"
        ) from error
