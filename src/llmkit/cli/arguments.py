"""Sorts the arguments of a command into CONFIG, data and KEY=VALUE."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmkit.errors import InputNotFound, UsageError
from llmkit.storage import paths

DATA_OPTIONS = {
    "pretrain": ("--text", "data.train_files"),
    "finetune": ("--csv", "data.train_files"),
    "predict": ("--csv", "data.test_files"),
    "evaluate": ("--text", "data.test_files"),
    "generate": ("--prompts-file", "generation.prompts_file"),
}
"""The option and the config key for the data of each command."""

_HEAD = 1 << 16
"""Number of bytes read to distinguish a config from data."""

_KEY = re.compile(rb"""["']?[A-Za-z_][\w.-]*["']?\s*:(\s|$)|[}\]#]|---|\.\.\.""")


@dataclass(frozen=True)
class Arguments:
    """The arguments of a command, by kind."""

    config: Path | None = None
    data: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)


def parse_arguments(command: str, arguments: Sequence[str]) -> Arguments:
    """Sorts the arguments: data is recognised by its name and its content.

    Raises UsageError for arguments that cannot be combined, and InputNotFound where CONFIG is a
    directory or a missing file.
    """
    given = Arguments()
    config: Path | None = None
    for argument in arguments:
        if is_override(argument):
            given.overrides.append(argument)
        elif command in DATA_OPTIONS and is_data(argument):
            given.data.append(argument)
        elif config is None and not given.overrides and not given.data:
            config = Path(argument)
        else:
            raise _neither(command, argument)
    if config is not None:
        check_config(command, config)
    return Arguments(config, given.data, given.overrides)


def is_data(argument: str) -> bool:
    """Whether an argument names a table or text rather than a YAML file."""
    from llmkit.data.readers.files import SUFFIXES

    name = argument.lower()
    if name.startswith("hub:") or name.endswith(SUFFIXES):
        return True
    path = Path(argument).expanduser()
    return not name.endswith((".yaml", ".yml")) and path.is_file() and not _reads_as_config(path)


def _reads_as_config(path: Path) -> bool:
    """Whether a file with an unknown suffix starts like a config."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return True  # reading it as a config reports the error
    if head.lstrip().startswith(b"{"):
        return _is_object(head)
    lines = head.removeprefix(b"\xef\xbb\xbf").splitlines()
    tops = [line for line in lines if line.strip() and not line.startswith((b" ", b"\t", b"- "))]
    return all(_KEY.match(line) for line in tops)


def _is_object(text: bytes) -> bool:
    """Whether a text is a single JSON object rather than JSON lines."""
    first = text.split(b"\n", 1)
    try:
        json.loads(first[0])
    except ValueError:
        return True
    return not first[1:] or not first[1].strip()


def is_override(argument: str) -> bool:
    """Whether an argument is KEY=VALUE, and not a path that holds `=`."""
    name, equals, _ = argument.partition("=")
    return bool(equals) and "/" not in name and os.sep not in name


def experts_of(pairs: Sequence[str]) -> list[tuple[str, str]]:
    """The config key and the run of each DOMAIN=RUN; raises UsageError for anything else."""
    found = []
    for pair in pairs:
        name, equals, run = pair.partition("=")
        if not (equals and name and run):
            raise UsageError(
                f"`--expert {pair}` names no domain and run", next=f"write `--expert DOMAIN={pair}`"
            )
        found.append((f"merge.experts.{name}", run))
    return found


def _neither(command: str, argument: str) -> UsageError:
    option = DATA_OPTIONS.get(command, ("", ""))[0]
    return UsageError(
        f"`{argument}` is neither CONFIG, which comes first, nor KEY=VALUE",
        next=f"pass data as `{option} A {option} B`, or as a quoted glob"
        if option
        else "write KEY=VALUE, such as `seed=1`",
    )


def check_config(command: str, path: Path) -> None:
    """Raises InputNotFound, with what to write instead, for a CONFIG that is not a file."""
    if path.is_dir():
        raise InputNotFound("CONFIG is a directory", where=str(path), next=_instead(command, path))
    if path.exists():
        return
    near = [str(found) for found in paths.near(path) if found.is_file()]
    hint = f"did you mean {' or '.join(near)}?" if near else _instead(command, path)
    raise InputNotFound("the config file does not exist", where=str(path), next=hint)


def _instead(command: str, path: Path) -> str:
    """What to type when CONFIG is something else."""
    option = DATA_OPTIONS.get(command, ("",))[0]
    if (path / "config.json").exists() or (path / "run.json").exists():
        return f"pass a model with `--model {path}`"
    if path.is_dir() and command != "generate" and option:
        return f"pass data with `{option} {path}`"
    advice = "CONFIG is a YAML file with lines such as `train.max_steps: 100`"
    if command == "generate" and " " in str(path):
        return f"{advice}; pass a text to continue with `--prompt`"
    if command in ("generate", "chat"):
        return f"{advice}; pass a model with `--model {path}`"
    return f"{advice}; pass data with `{option} PATH`"
