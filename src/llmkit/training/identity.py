"""What makes a run that run: with any of it changed, going on would train something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.config.schema import Config
from llmkit.errors import ConfigError

FREE = {
    "output_dir", "resume", "report_to",
    "data.test_files",
    "train.micro_batch_size", "train.gradient_checkpointing", "train.compile",
    "train.logging_steps", "train.eval_steps", "train.save_steps", "train.save_total_limit",
    "train.max_nonfinite_steps",
}  # fmt: skip
"""Keys that may change when a run goes on; `generation.*` too."""


def identity(command: str, config: Config, content: Mapping[str, str]) -> dict[str, Any]:
    """The keys and the content hashes that must stay; files count by content, not by name."""
    keys = {
        key: value
        for key, value in dotted(config.model_dump(mode="json")).items()
        if key not in FREE and not key.startswith("generation.") and not key.endswith("_files")
    }
    return {"command": command, **keys, **{f"content of {k}": v for k, v in content.items()}}


def check(recorded: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError with every difference between a checkpoint's identity and this run's."""
    faults = [
        f"{key} was {recorded.get(key)!r}, is now {now.get(key)!r}"
        for key in sorted({*recorded, *now})
        if recorded.get(key) != now.get(key)
    ]
    if faults:
        raise ConfigError(
            "this run cannot go on with another config or other data:\n       "
            + "\n       ".join(faults),
            where=where,
            kept="the run and all its checkpoints, untouched",
            next="put the old values back, or choose another output_dir for a new run",
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
