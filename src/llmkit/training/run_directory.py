"""The run directory: created or found, locked by one process, never shared with another run."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmkit.config.schema import Config
from llmkit.distributed.launcher import is_main_process
from llmkit.errors import ConfigError, RunBusy, WriteError
from llmkit.storage import atomic
from llmkit.storage.atomic import try_lock
from llmkit.storage.outputs import RUN

LOCK = ".lock"


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


def locate_run(config: Config, command: str) -> Path:
    """The run directory: the given one, or one derived from command and config."""
    if config.output_dir is not None:
        return Path(config.output_dir).expanduser()
    return default_directory(command, config)


def sizes(config: Config, command: str) -> dict[str, Any] | None:
    """The sizes that were resolved when the run began; None for a new run."""
    record = locate_run(config, command) / RUN
    found = _read_record(record) if record.exists() else {}
    return found.get("sizes", found.get("settled"))  # its name in older runs


@contextmanager
def hold_run_directory(config: Config, command: str) -> Iterator[Path]:
    """The run directory, locked while in use; only the main process touches it."""
    directory = locate_run(config, command)
    if not is_main_process():
        yield directory
        return
    with held(directory):
        yield directory


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
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _read_record(path: Path) -> dict[str, Any]:
    """The facts of a run, its `command` among them; raises WriteError for a damaged file."""
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        found["command"] = str(found["command"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise WriteError(
            f"holds a run whose {RUN} is damaged ({error})",
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
    """Raises WriteError unless the directory is empty or holds a run that this command may
    resume."""
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
            f"holds files that are not a run of llmkit ({sorted(present)[0]})",
            where=f"output_dir={directory}",
            next="choose another output_dir; nothing is overwritten that a run did not create",
        )
    found = _read_record(record)["command"]
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
            next="choose another output_dir, or remove `resume` to resume it",
        )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise WriteError(
            f"{error.strerror}", where=f"output_dir={path}", next="choose another output_dir"
        ) from error


FREE = {
    "output_dir", "resume", "report_to",
    "train.micro_batch_size", "train.gradient_checkpointing", "train.compile", "train.precision",
    "train.logging_steps", "train.eval_steps", "train.save_steps", "train.save_total_limit",
    "train.max_nonfinite_steps", "train.loss_spike", "train.plan",
    "train.ddp_timeout",
}  # fmt: skip
"""Keys that may change when a run is resumed, since they change none of its numbers. So may keys
that only use its model (`generation.*`, `evaluation.*`, `predict.*`), and files if their content
stays the same."""

_LENGTH = ("train.max_steps", "train.num_train_epochs", "train.max_minutes")
"""Keys that may change too: they give the run another length, which is planned from there on."""


def identifying_keys(config: Config) -> dict[str, Any]:
    """The keys of a config that must not change when a run is resumed."""
    sections, files = ("generation.", "evaluation.", "predict."), ("_files", ".files")
    found = {
        key: value
        for key, value in dotted(config.model_dump(mode="json")).items()
        if key not in FREE and not key.startswith(sections) and not key.endswith(files)
    }
    if config.model.code is not None:
        code = Path(config.model.code).expanduser().read_bytes()
        found["model.code"] = hashlib.sha256(code).hexdigest()
    return found


def check_same_run(
    recorded: Mapping[str, Any], config: Config, content: Mapping[str, str], where: str, run: Path
) -> None:
    """Raises ConfigError with every difference between a checkpoint's run, in the directory `run`,
    and this one.

    The length may differ. `recorded` holds `requested` and `resolved` keys.
    """
    requested, now = recorded["requested"], identifying_keys(config)
    faults = [
        f"{key} was {requested.get(key)!r}, is now {now.get(key)!r}"
        for key in sorted({*requested, *now} - {*_LENGTH})
        if _changed(key, recorded, now)
    ]
    faults += [
        f"the {what} has changed"
        for what, fingerprint in content.items()
        if recorded["content"].get(what) != fingerprint
    ]
    if faults:
        raise ConfigError(
            "the run cannot be resumed with another config or other data:"
            + "".join(f"\n       {f}" for f in faults),
            where=where,
            kept="the run and all its checkpoints, untouched",
            next="put the old values back; or start a new run with another --output-dir, from this "
            f"run's model if you like: --model {run} --output-dir {run}-2",
        )


def changed_length(recorded: Mapping[str, Any], config: Config) -> dict[str, list[Any]]:
    """The keys that change the length of a run, with old and new value."""
    now = identifying_keys(config)
    return {
        key: [recorded["requested"].get(key), now.get(key)]
        for key in _LENGTH
        if _changed(key, recorded, now)
    }


def _changed(key: str, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a key has another value; `auto` equals the value that it was resolved to."""
    value = now.get(key)
    return value not in (recorded["requested"].get(key), recorded["resolved"].get(key))


def default_directory(command: str, config: Config) -> Path:
    """The default run directory: the same for the same command and config."""
    text = json.dumps(
        [command, identifying_keys(config), config.data.model_dump(mode="json")], sort_keys=True
    )
    return (
        Path("runs")
        / f"{command}-{hashlib.sha256(text.encode('utf-8', 'backslashreplace')).hexdigest()[:8]}"
    )


def dotted(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings; keys are joined by dots."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            flat |= dotted(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = inner
    return flat


def write_record(directory: Path, record: Mapping[str, Any]) -> None:
    """Writes `run.json` atomically."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    atomic.replace_text(directory / RUN, text + "\n")


def add_result(
    directory: Path, figures: Mapping[str, Any], warnings: Sequence[str], limits: Sequence[str]
) -> None:
    """Adds to `run.json` the figures of the finished run, all warnings, and those on its data and
    its figures: they are the same however often the run was interrupted."""
    record = json.loads((directory / RUN).read_text(encoding="utf-8"))
    found = {"warnings": list(warnings), "limits": list(limits), "result": dict(figures)}
    write_record(directory, {**record, **found})


def origins(asked: Config, resolved: Mapping[str, Any]) -> dict[str, str]:
    """Where the values of the config come from, for those that are not defaults: `given`, or
    `auto` where the run chose the value."""
    default, given = (dotted(each.model_dump(mode="json")) for each in (Config(), asked))
    found = {}
    for key, value in dotted(resolved).items():
        if given.get(key) == "auto" != value:
            found[key] = "auto"
        elif given.get(key, value) != default.get(key):
            found[key] = "given"
    return found


def surroundings(device: str) -> dict[str, str]:
    """The date, host and device of a run, and the git commit of the current directory if there is
    one."""
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "device": device,
    }
    with suppress(OSError, ValueError):
        if commit := git_commit(Path.cwd()):
            facts["commit"] = commit
    return facts


def git_commit(directory: Path) -> str | None:
    """The current commit of the git repository around a directory, read from its files, since a run
    starts no other program. None without a repository or a commit."""
    git = next(
        (each / ".git" for each in (directory, *directory.parents) if (each / ".git").exists()),
        None,
    )
    if git is None:
        return None
    if git.is_file():  # of a worktree
        git = git.parent / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref: "):
        return head
    ref, shared = head.removeprefix("ref: "), git
    if (git / "commondir").exists():
        shared = git / (git / "commondir").read_text(encoding="utf-8").strip()
    for place in (git / ref, shared / ref):
        if place.is_file():
            return place.read_text(encoding="utf-8").strip()
    packed = (shared / "packed-refs").read_text(encoding="utf-8").splitlines()
    return next((line.split()[0] for line in packed if line.endswith(f" {ref}")), None)
