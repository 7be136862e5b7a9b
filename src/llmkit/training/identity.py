"""What makes a run that run: with any of it changed, going on would train something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit.config.schema import Config
from llmkit.errors import ConfigError

FREE = {
    "output_dir", "resume", "report_to",
    "train.micro_batch_size", "train.gradient_checkpointing", "train.compile", "train.precision",
    "train.logging_steps", "train.eval_steps", "train.save_steps", "train.save_total_limit",
    "train.max_nonfinite_steps", "train.loss_spike", "train.plan",
    "train.ddp_timeout",
}  # fmt: skip
"""Keys that may change when a run is resumed: they change none of its numbers. So may what is done
with its model (`generation.*`, `evaluation.*`, `predict.*`), and files, whose content counts."""

LENGTH = ("train.max_steps", "train.num_train_epochs", "train.max_minutes")
"""Keys that may change too: the run gets another length, and is planned anew from where it is."""


def keys(config: Config) -> dict[str, Any]:
    """The keys of a config that must stay as they are when a run is resumed."""
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


def check(
    recorded: Mapping[str, Any], config: Config, content: Mapping[str, str], where: str, model: Path
) -> None:
    """Raises ConfigError with every difference between a checkpoint's run, whose finished `model`
    is named, and this one; its length may differ.

    `recorded` holds `requested` and `resolved` keys.
    """
    requested, now = recorded["requested"], keys(config)
    faults = [
        f"{key} was {requested.get(key)!r}, is now {now.get(key)!r}"
        for key in sorted({*requested, *now} - {*LENGTH})
        if _changed(key, recorded, now)
    ]
    faults += [
        f"the {what} is not the same any more"
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
            f"run's model if you like: --model {model} --output-dir {model.parent}-2",
        )


def changed_length(recorded: Mapping[str, Any], config: Config) -> dict[str, list[Any]]:
    """The keys that make a run longer or shorter than a checkpoint's, with old and new value."""
    now = keys(config)
    return {
        key: [recorded["requested"].get(key), now.get(key)]
        for key in LENGTH
        if _changed(key, recorded, now)
    }


def _changed(key: str, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a key has another value; `auto` may be written as what it was resolved to."""
    value = now.get(key)
    return value not in (recorded["requested"].get(key), recorded["resolved"].get(key))


def default_directory(command: str, config: Config) -> Path:
    """The run directory where none is named: the same for the same command and config."""
    text = json.dumps([command, keys(config), config.data.model_dump(mode="json")], sort_keys=True)
    return (
        Path("runs")
        / f"{command}-{hashlib.sha256(text.encode('utf-8', 'backslashreplace')).hexdigest()[:8]}"
    )


def dotted(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            flat |= dotted(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = inner
    return flat
