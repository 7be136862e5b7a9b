"""The run directory: created or found, locked by one process, never shared with another run."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmkit.config.schema import Config
from llmkit.distributed.launcher import is_main_process
from llmkit.errors import ConfigError, RunBusy, WriteError
from llmkit.storage import atomic, numbered
from llmkit.storage.atomic import try_lock
from llmkit.storage.outputs import RUN
from llmkit.storage.strict_json import json_text
from llmkit.training import run_identity
from llmkit.training.run_identity import RUNS_DIRECTORY

if TYPE_CHECKING:
    from llmkit.distributed.processes import Processes

LOCK = ".lock"

_PROOF = ".seen-by-all-"
"""How the name of a file begins that exists for a moment when a run of several processes begins."""


def check_run_directory(config: Config, command: str) -> None:
    """Refuse, before any work, a directory that cannot belong to this run; writes nothing.

    Raises WriteError if the path cannot be written, or holds other files, a run of another command,
    or any run while `resume` is `never`; RunBusy if another process uses it.
    """
    if not is_main_process():
        return
    directory = locate_run(config, command)
    if _writable(directory):
        _check_holdings(directory, command, config.resume)
        recorded = run_identity.recorded_identity(directory)
        if recorded and config.resume == "auto":
            run_identity.check_same_run(recorded, config, {}, str(directory), directory)


def begun_run(config: Config, command: str) -> Path | None:
    """The directory of this run if it is given, or if an earlier call of the same command with the
    same config has made one."""
    if config.output_dir is not None:
        return Path(config.output_dir).expanduser()
    return run_identity.default_run(config, command)


def locate_run(config: Config, command: str) -> Path:
    """The run directory: the given one, that of the same command and config, or the next free name,
    which belongs to the run only when `hold_run_directory` has created it."""
    prefix = run_identity.default_prefix(config, command)
    return begun_run(config, command) or numbered.next_free(RUNS_DIRECTORY, prefix)


def sizes(config: Config, command: str) -> dict[str, Any] | None:
    """The sizes that were resolved when the run began; None for a new run."""
    directory = begun_run(config, command)
    if directory is None or not (directory / RUN).exists():
        return None
    found = read_facts(directory)
    return found.get("sizes", found.get("settled"))  # its name in older runs


class FinishedRun(NamedTuple):
    """What `run.json` records of a finished run."""

    result: dict[str, Any]
    limits: list[str]
    """The warnings on its data and its figures."""

    @property
    def without_speed(self) -> dict[str, Any]:
        """The result of a repetition, in which nothing was trained."""
        found = self.result.items()
        return {name: value for name, value in found if not name.endswith("_per_second")}


def finished_run(directory: Path, config: Config) -> FinishedRun | None:
    """The record of the run in a directory, if it is finished and has all figures that the config
    asks for: answers may be asked for once the run is done."""
    try:
        found = read_facts(directory)
    except WriteError:
        return None
    result, limits = found.get("result"), found.get("limits", [])
    if not isinstance(result, dict):
        return None
    answers = (result.get("validation") or {}).get("answers") or {}
    has_all = (config.evaluation.responses or 0) <= answers.get("examples", 0)
    return FinishedRun(result, limits) if has_all else None


def notes(directory: Path) -> list[str]:
    """The messages that the run in a directory has recorded when it began."""
    with suppress(WriteError):
        return list(read_facts(directory).get("notes", []))
    return []


def finished_result(config: Config, command: str) -> dict[str, Any] | None:
    """The figures of the run in the given directory if it is finished, and of this config."""
    try:
        found = read_facts(Path(str(config.output_dir)).expanduser())
    except WriteError:
        return None
    is_same = found.get("request") == run_identity.request_of(config, command)
    return found.get("result") if is_same else None


@contextmanager
def hold_run_directory(config: Config, command: str) -> Iterator[Path]:
    """The run directory, created and locked while in use; only the main process touches it, and
    only it knows the name for sure."""
    if not is_main_process():
        yield locate_run(config, command)
        return
    directory = begun_run(config, command) or _claimed(config, command)
    with held(directory):
        yield directory


def _claimed(config: Config, command: str) -> Path:
    """A new directory in `runs/`, which says from the start what it is for."""
    request = run_identity.request_of(config, command)
    facts = {"command": command, "arguments": list(config.command_line), "request": request}
    prefix = run_identity.default_prefix(config, command)
    return numbered.claim(RUNS_DIRECTORY, prefix, RUN, facts, again=config.resume == "never")


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Lock the directory for this process; the operating system releases it whenever it ends.

    Raises RunBusy, which names the holder, if another process has the lock.
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
        _name_holder(file.fileno(), directory)
        yield


def check_seen_by_all(directory: Path, processes: Processes) -> None:
    """Raises ConfigError, on every rank, unless all of them see the directory of rank 0, or that in
    which it will be created: each writes its part of a checkpoint there.

    Rank 0 writes a random word for a moment, which each rank reads: another disk may have a
    directory of the same name.
    """
    if processes.count == 1:
        return
    word = secrets.token_hex(16)
    place = next(each for each in (directory, *directory.parents) if each.is_dir())
    proof = place / f"{_PROOF}{word[:8]}"
    try:
        with processes.alike():
            if processes.is_main:
                _write_proof(proof, word)
        name, word = processes.of_main(f"{proof}\n{word}").rsplit("\n", 1)
        with processes.alike():
            if _read_proof(Path(name)) != word:
                raise ConfigError(
                    f"{socket.gethostname()} does not see the run directory of rank 0",
                    where=f"output_dir={directory}",
                    next="choose an output_dir on a disk that all nodes share, and start the "
                    "command in the same directory on each",
                )
    finally:
        if processes.is_main:
            proof.unlink(missing_ok=True)


def _write_proof(proof: Path, word: str) -> None:
    try:
        proof.write_text(word, encoding="utf-8")
    except OSError as error:
        raise atomic.cannot_write(error, proof) from error


def _read_proof(proof: Path) -> str:
    try:
        return proof.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _name_holder(lock: int, directory: Path) -> None:
    """Writes into the locked file which process holds it; without a buffer, which would fail again
    on a full disk when it is closed."""
    try:
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except OSError as error:
        raise atomic.cannot_write(error, directory) from error


def read_facts(directory: Path) -> dict[str, Any]:
    """The facts of a run, its `command` among them; raises WriteError for a damaged file."""
    path = directory / RUN
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        found["command"] = str(found["command"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise WriteError(
            f"the directory holds a run whose {RUN} is damaged ({error})",
            where=str(path),
            kept="the run, untouched",
            next='restore it; {"command": "pretrain"} or the like is enough to resume',
        ) from error
    return found


def _writable(directory: Path) -> bool:
    """Whether the directory exists; raises WriteError if it cannot be written."""
    if any("\ud800" <= letter <= "\udfff" for letter in str(directory)):
        raise WriteError(
            "its name is not UTF-8, which libraries cannot write to",
            where=f"output_dir={directory}",
            next="choose another output_dir; in a locale without UTF-8, set LC_ALL=C.UTF-8",
        )
    existing = next(p for p in (directory, *directory.parents) if _exists(p))
    if not existing.is_dir():
        raise WriteError(
            f"{existing} is not a directory",
            where=f"output_dir={directory}",
            next="choose another output_dir",
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise WriteError(
            f"{existing} is not writable",
            where=f"output_dir={directory}",
            next="choose another output_dir",
        )
    return existing == directory


def _check_holdings(directory: Path, command: str, resume: str) -> None:
    """Raises WriteError unless the directory is empty or holds a run that this command may
    resume."""
    if (directory / LOCK).is_file():
        with held(directory):
            pass
    unfinished = atomic.partial_of(directory / RUN).name
    names = {each.name for each in directory.iterdir() if not each.name.startswith(_PROOF)}
    present = names - {LOCK, unfinished}
    if not present:
        return
    if not (directory / RUN).exists():
        raise WriteError(
            f"the directory holds files that are not a run of llmkit ({sorted(present)[0]})",
            where=f"output_dir={directory}",
            next="choose another output_dir; nothing is overwritten that a run did not create",
        )
    found = read_facts(directory)["command"]
    if found != command:
        raise WriteError(
            f"the directory holds a run of {found}, not of {command}",
            where=f"output_dir={directory}",
            next="choose another output_dir",
        )
    if resume == "never":
        raise WriteError(
            "the directory holds a run, and resume is `never`",
            where=f"output_dir={directory}",
            kept="that run, untouched",
            next="choose another output_dir, or remove `resume` to resume it",
        )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise WriteError(
            f"{error.strerror}", where=f"output_dir={path}", next="choose another output_dir"
        ) from error


def write_record(directory: Path, record: Mapping[str, Any]) -> None:
    """Writes `run.json` atomically."""
    text = json_text(record, indent=1)
    atomic.replace_text(directory / RUN, text + "\n")


def add_result(
    directory: Path, figures: Mapping[str, Any], warnings: Sequence[str], limits: Sequence[str]
) -> None:
    """Adds to `run.json` the figures of the finished run, all warnings, and those on its data and
    its figures: they are the same however often the run was interrupted."""
    record = json.loads((directory / RUN).read_text(encoding="utf-8"))
    found = {"warnings": list(warnings), "limits": list(limits), "result": dict(figures)}
    write_record(directory, {**record, **found})
