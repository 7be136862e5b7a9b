"""What identifies a run: its request, the default name made from it, and what may not change."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from llmkit.config import keys
from llmkit.config.schema import Config
from llmkit.errors import ConfigError, listed
from llmkit.storage import numbered, outputs

FREE = {
    "output_dir", "resume", "report_to",
    "train.micro_batch_size", "train.gradient_checkpointing", "train.compile", "train.precision",
    "train.logging_steps", "train.eval_steps", "train.save_steps", "train.save_total_limit",
    "train.max_nonfinite_steps", "train.loss_spike", "train.plan",
    "train.ddp_timeout", "train.shard", "train.shard_size",
}  # fmt: skip
"""Keys that may change when a run is resumed, since they change none of its numbers. So may keys
that only use its model (`_USES`), and files if their content stays the same."""

_USES = ("generation.", "evaluation.", "predict.", "merge.")

_FILES = ("_files", ".files")

_LENGTH = ("train.max_steps", "train.num_train_epochs", "train.max_minutes")
"""Keys that may change too: they give the run another length, which is planned from there on."""


def identifying_keys(config: Config) -> dict[str, Any]:
    """The keys of a config that must not change when training is resumed."""
    found = {
        key: value
        for key, value in dotted(config.model_dump(mode="json")).items()
        if key not in FREE and not key.startswith(_USES) and not key.endswith(_FILES)
    }
    if config.model.code is not None:
        with suppress(OSError):  # reported where files are checked
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
        if not key.startswith(_USES) and _changed(key, recorded, now)
    ]
    faults += [
        f"the {what} has changed"
        for what, fingerprint in content.items()
        if recorded["content"].get(what) != fingerprint
    ]
    if faults:
        raise ConfigError(
            "the run cannot be resumed with another config or other data:"
            f"\n       {listed(faults)}",
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
    """Whether a key has another value; `auto` equals the value that it was resolved to, and a key
    that is newer than the run its default."""
    value, asked = now.get(key), recorded["requested"]
    before = asked[key] if key in asked else usual_keys().get(key)
    return value not in (before, recorded["resolved"].get(key))


@cache
def usual_keys() -> dict[str, Any]:
    """The identifying keys of a config in which nothing is given."""
    return identifying_keys(Config())


def request_of(config: Config, command: str) -> dict[str, Any]:
    """What a run was asked to do: its command, the keys that identify it and are not defaults, and
    its files as they were named."""
    if command == "merge":
        return {"command": command, **_merge_keys(config)}
    usual = usual_keys()
    asked = {key: v for key, v in identifying_keys(config).items() if v != usual.get(key)}
    return {"command": command, **asked, **_files_of(config.model_dump(mode="json"))}


def _merge_keys(config: Config) -> dict[str, Any]:
    """The keys that apply to `merge` and are not defaults; a config has those of training too."""
    usual = dict(keys.leaves(Config().model_dump(mode="json")))
    return {
        ".".join(path): value
        for path, value in keys.leaves(config.model_dump(mode="json"))
        if ".".join(path) not in FREE
        and value != usual.get(path)
        and (key := keys.owner(path))
        and "merge" in key.jobs
    }


def recorded_identity(run: Path) -> dict[str, Any]:
    """The identity of a run in its newest checkpoint, as it is written there; empty without one."""
    steps = outputs.checkpoints(run / outputs.CHECKPOINTS)
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        state = json.loads((steps[-1] / outputs.STATE).read_text(encoding="utf-8"))
        if {"requested", "resolved"} <= state["identity"].keys():
            return dict(state["identity"])
    return {}


def default_prefix(config: Config, command: str) -> str:
    """The name of a run without its number: the command, and what its data are called."""
    return "-".join(filter(None, (command, _name_of_data(config))))


def default_run(config: Config, command: str) -> Path | None:
    """The newest run in `runs/` of this command and config; None if there is none, or if `resume`
    asks for a new one."""
    if config.resume == "never":
        return None
    prefix, request = default_prefix(config, command), request_of(config, command)
    return numbered.find_numbered(RUNS_DIRECTORY, prefix, outputs.RUN, request) or _older(request)


RUNS_DIRECTORY = Path("runs")
"""Where runs without an `output_dir` are."""

_OLDER = re.compile(r"(pretrain|finetune)-[0-9a-f]{8}")
"""The default name of a run by an earlier llmkit: it ends with a hash of the config."""


def _older(request: Mapping[str, Any]) -> Path | None:
    """The run of this request by an earlier llmkit, which did not record requests."""
    command = request["command"]
    names = RUNS_DIRECTORY.iterdir() if RUNS_DIRECTORY.is_dir() else ()
    runs = (run for run in names if (match := _OLDER.fullmatch(run.name)) and match[1] == command)
    return next((run for run in sorted(runs) if _request_of_older(run, command) == request), None)


def _request_of_older(run: Path, command: str) -> dict[str, Any]:
    """The request of a run by its checkpoint, which has all keys, and its config, which has the
    files."""
    usual = usual_keys()
    with suppress(OSError, ValueError, yaml.YAMLError):
        asked = recorded_identity(run).get("requested", {})
        found = yaml.safe_load((run / outputs.CONFIG).read_text(encoding="utf-8"))
        given = {key: value for key, value in asked.items() if value != usual.get(key)}
        return {"command": command, **given, **_files_of(found)}
    return {}


def _files_of(config: Mapping[str, Any]) -> dict[str, Any]:
    found = dotted({"data": config.get("data") or {}})
    return {key: value for key, value in found.items() if key.endswith(_FILES) and value}


_STREAM = re.compile(r"hub:([^:@]+)")
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}")


def _name_of_data(config: Config) -> str:
    """A name for the data: the domains of a mixture, else the first file without its suffixes."""
    data = config.data
    if data.mixture and data.domains is None:
        return numbered.safe("-".join(data.mixture))
    names = [name for each in data.train_files if (name := _stem(each))]
    others = len(data.train_files) - 1
    return f"{names[0]}{f'-and-{others}-more' if others > 0 else ''}" if names else ""


def _stem(entry: str) -> str:
    """The name of a file, directory, glob or hub data set."""
    if match := _STREAM.match(entry):
        return numbered.safe(match[1].rpartition("/")[2])
    path = Path(entry).expanduser()
    is_pattern = glob.has_magic(entry) and not path.exists()
    parts = reversed(Path(os.path.normpath(path.absolute())).parts)
    names = (_without_suffixes(part) for part in parts if not (is_pattern and glob.has_magic(part)))
    return next(filter(None, names), "")


def _without_suffixes(name: str) -> str:
    while _SUFFIX.fullmatch(suffix := Path(name).suffix):
        name = name.removesuffix(suffix)
    return numbered.safe(name)


def dotted(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings; keys are joined by dots."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            flat |= dotted(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = inner
    return flat
