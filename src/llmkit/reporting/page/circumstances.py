"""How a run came about: its speed and memory, what was chosen and why, and how to repeat it."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from llmkit.reporting.format import clock, figure_text, without_folders
from llmkit.reporting.page.run_comparison import dotted_values
from llmkit.reporting.run_record import RunRecord

_FILES = ("_files", ".files", "output_dir", "name_or_path")
"""Ends of keys whose values are paths."""


def speed_lines(run: RunRecord) -> Iterator[tuple[str, str]]:
    """Names and values of what a run cost."""
    for unit in ("tokens", "predictions", "examples"):
        rates = [r[f"{unit}_per_second"] for r in run.timing if f"{unit}_per_second" in r]
        if rates:
            yield "speed", f"{statistics.median(rates):,.0f} {unit}/s (median of the logged steps)"
    memory = [r["memory_bytes"] for r in run.timing if "memory_bytes" in r]
    if memory:
        yield "peak memory", f"{max(memory) / 2**20:,.0f} MiB in one process"
    shares = [r["mfu"] for r in run.timing if "mfu" in r]
    if shares:
        yield "model FLOPs utilization", f"{statistics.median(shares):.0%} of the matrix rate"
    if seconds := run.result.get("seconds"):
        yield "training time", clock(seconds)
    if device := run.facts.get("device"):
        yield "device", str(device)


def choices(run: RunRecord) -> dict[str, list[dict[str, str]]]:
    """The keys that were given, and those that `auto` chose with the reason of each."""
    origins: Mapping[str, str] = run.facts.get("origins") or {}
    reasons: Mapping[str, str] = run.facts.get("reasons") or {}
    values = dict(dotted_values(run.config))
    found: dict[str, list[dict[str, str]]] = {"given": [], "auto": []}
    for key, origin in origins.items():
        if origin in found and values.get(key) is not None:
            value = without_folders(figure_text(values[key])) if key.endswith(_FILES) else (
                figure_text(values[key])
            )  # fmt: skip
            found[origin].append({"key": key, "value": value, "reason": reasons.get(key, "")})
    return found


def repeating_command(run: RunRecord) -> str:
    """The command that repeats the run and prints its summary."""
    return shlex.join(word for word in run.command_line if word != "--json")


def using_command(run: RunRecord) -> str:
    """The command that uses the model of a finished run; empty for others."""
    if not run.is_finished:
        return ""
    given = str(run.result.get("run_dir", run.name))
    model = run.name if PurePath(given).is_absolute() else given
    objective = (run.config.get("train") or {}).get("objective")
    writes = ("causal", "masked", "completion", "sequence_to_sequence", "preference")
    if objective in writes or run.command != "finetune":
        prompt = "a text with a [MASK]" if objective == "masked" else "..."
        return shlex.join(["llmkit", "generate", "--model", model, "--prompt", prompt])
    return shlex.join(["llmkit", "predict", "--model", model, "--csv", "new.csv"])


def provenance(run: RunRecord) -> Iterator[tuple[str, Any]]:
    """Names and values of what the result depends on beside the command."""
    for name in ("date", "host", "commit"):
        if found := run.facts.get(name):
            yield name, str(found)
    yield "seed", str(run.config.get("seed", 0))
    for name, value in (run.facts.get("environment") or {}).items():
        yield name, str(value)
    for name, value in (run.facts.get("content") or {}).items():
        yield f"fingerprint of the {name}", str(value)
