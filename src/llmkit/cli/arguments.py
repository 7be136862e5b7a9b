"""Sorts the arguments of a command into CONFIG, data and KEY=VALUE."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmkit.errors import InputNotFound, UsageError
from llmkit.storage import outputs, paths

DATA_OPTIONS = {
    "pretrain": ("--text", "data.train_files"),
    "prepare": ("--text", "data.train_files"),
    "finetune": ("--csv", "data.train_files"),
    "predict": ("--csv", "data.test_files"),
    "evaluate": ("--text", "data.test_files"),
    "export": ("--csv", "data.test_files"),
    "clean": ("--text", "data.train_files"),
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

    Raises UsageError for arguments that cannot be combined and for data that the command does not
    read, and InputNotFound where CONFIG is a directory or a missing file.
    """
    given = Arguments()
    config: Path | None = None
    for argument in arguments:
        if command == "merge" and _is_expert(argument):
            what = f"`{argument}` names an expert without its option"
            raise UsageError(what, next=f"write `--expert {argument}`")
        if is_override(argument):
            given.overrides.append(argument)
        elif is_data(argument):
            if command not in DATA_OPTIONS:
                raise _reads_no_data(command, argument)
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
    from llmkit.data.readers.directories import SUFFIXES

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


def _is_expert(argument: str) -> bool:
    """Whether an argument is DOMAIN=RUN with an existing run."""
    name, _, run = argument.partition("=")
    return is_override(argument) and "." not in name and Path(run).expanduser().is_dir()


def experts_of(pairs: Sequence[str]) -> list[tuple[str, str]]:
    """The config key and the run of each DOMAIN=RUN; raises UsageError for anything else."""
    from llmkit.config.types import EXPERT_NAME

    found = []
    for pair in pairs:
        name, run = pair.split("=", 1) if "=" in pair else ("", pair)
        if not (name and run):
            raise UsageError(
                f"`--expert {pair}` is not DOMAIN=RUN",
                next=f"write `--expert {name or 'DOMAIN'}={run or 'RUN'}`",
            )
        if not EXPERT_NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot name an expert",
                where=f"--expert {pair}",
                next=f"use letters, digits, - and _, at most 60: `--expert DOMAIN={run}`",
            )
        found.append((f"merge.experts.{name}", run))
    return found


_EXPERTS = "pass each expert with `--expert DOMAIN=RUN`"


def _reads_no_data(command: str, argument: str) -> UsageError:
    advice = f"`llmkit generate --prompts-file {argument}` continues texts"
    return UsageError(
        f"`llmkit {command}` reads no data, and {argument} is not a config",
        next=_EXPERTS if command == "merge" else advice,
    )


def _neither(command: str, argument: str) -> UsageError:
    advice = "write KEY=VALUE, such as `seed=1`"
    if command in DATA_OPTIONS:
        option, _ = DATA_OPTIONS[command]
        advice = f"pass data as `{option} A {option} B`, or as a quoted glob"
    elif command == "merge":
        advice = _EXPERTS
    what = f"`{argument}` is neither CONFIG, which comes first, nor KEY=VALUE"
    return UsageError(what, next=advice)


def check_config(command: str, path: Path, is_call: bool = False) -> None:
    """Raises InputNotFound, with what to write instead on a command line or in a call from Python,
    for a CONFIG that is not a file."""
    if path.is_dir():
        instead = _instead(command, path, is_call)
        raise InputNotFound("CONFIG is a directory", where=str(path), next=instead)
    if path.exists():
        return
    near = [str(found) for found in paths.near(path) if found.is_file()]
    hint = f"did you mean {' or '.join(near)}?" if near else _instead(command, path, is_call)
    raise InputNotFound("the config file does not exist", where=str(path), next=hint)


def _instead(command: str, path: Path, is_call: bool) -> str:
    """What to type when CONFIG is something else."""
    from llmkit.config.suggestions import Writing
    from llmkit.config.types import Form

    name, (option, key) = str(path), DATA_OPTIONS.get(command, ("", ""))
    options = {"model.name_or_path": "--model", key: option, "generation.prompts": "--prompt"}
    write = Writing(Form.KEYWORD) if is_call else Writing(Form.ARGUMENT, options)
    is_model = (path / "config.json").exists() or (path / outputs.RUN).exists()
    if command == "merge" and (is_model or "=" in name):
        expert = name if "=" in name else f"DOMAIN={name}"
        return f"pass an expert with `--expert {expert}`, or a merged model with `--model RUN`"
    if is_model:
        return f"pass a model with {write('model.name_or_path', name)}"
    if path.is_dir() and key and command != "generate":
        return f"pass data with {write(key, name)}"
    match command:
        case "merge":
            advice = _EXPERTS
        case "generate" if " " in name:
            advice = f"pass a text to continue with {write('generation.prompts', name)}"
        case "generate" | "chat":
            model = "MODEL" if " " in name else name
            advice = f"pass a model with {write('model.name_or_path', model)}"
        case _:
            advice = f"pass data with {write(key, 'PATH')}"
    return f"CONFIG is a YAML file of keys, which `llmkit keys` lists; {advice}"
