"""What a run has left in its directory, read back: facts, config, figures by step, evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from llmkit.errors import DataError, InputNotFound
from llmkit.reporting.held_out import HeldOut, read_held_out
from llmkit.storage import jsonl, outputs

LOWER_IS_BETTER = {"loss", "perplexity", "bits_per_byte", "mse", "rmse", "mae"}
"""Figures that fall while a model gets better; all others rise."""


@dataclass(frozen=True)
class RunRecord:
    """One run as its files describe it."""

    directory: Path
    facts: Mapping[str, Any]
    """`run.json`: the command, when and where it ran, its data, warnings and result."""
    config: Mapping[str, Any]
    """The resolved config."""
    metrics: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    evaluation: Mapping[str, Any]
    """Figures of each measured split, from `evaluation.json`; empty for language models."""
    label: str = ""
    """A name that tells the run from others whose directories have the same name."""

    @property
    def name(self) -> str:
        """The name of the run directory, unless another is given."""
        return self.label or self.directory.resolve().name

    @property
    def command(self) -> str:
        """The command that began the run."""
        return str(self.facts["command"])

    @property
    def command_line(self) -> tuple[str, ...]:
        """The words of the command that began the run."""
        return ("llmkit", *map(str, self.facts.get("arguments", [self.command, "..."])))

    @property
    def result(self) -> Mapping[str, Any]:
        """The figures that the finished run printed; empty while it is unfinished."""
        found: Mapping[str, Any] = self.facts.get("result") or {}
        return found

    @property
    def is_finished(self) -> bool:
        """Whether the run has reached its end."""
        return bool(self.result)

    @property
    def last_step(self) -> int:
        """The last step that the metrics know of."""
        return max((int(record.get("step", 0)) for record in self.metrics), default=0)

    @cached_property
    def held_out(self) -> HeldOut | None:
        """What became of each held-out passage or row; None where the run has not kept it. Raises
        DataError for a damaged file."""
        return read_held_out(self.directory) if self.is_finished else None

    @cached_property
    def validation(self) -> Mapping[str, Any]:
        """Figures on the validation data: of the finished model, with `intervals` where there is
        enough data for them, else of the last validation."""
        found = self._validation
        if "intervals" in found or self.held_out is None:
            return found
        return {**found, "intervals": self.held_out.intervals(int(self.config.get("seed", 0)))}

    @property
    def _validation(self) -> Mapping[str, Any]:
        if found := self.evaluation.get("validation") or self.result.get("validation"):
            return dict(found)
        prefix = "validation_"
        measured = (
            {key.removeprefix(prefix): value for key, value in record.items()}
            for record in reversed(self.metrics)
            if f"{prefix}loss" in record
        )
        return next(measured, {})

    @property
    def baseline(self) -> Mapping[str, Mapping[str, Any]]:
        """Figures of the baselines on the validation data, by their names."""
        found = self.validation.get("baseline") or self.result.get("baseline") or {}
        return dict(found)


def named_apart(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs, each once; those whose directories have the same name get as many directories above
    in front of it as they need to differ."""
    once = list({run.directory.resolve(): run for run in runs}.values())
    parts = [run.directory.resolve().parts for run in once]
    named = []
    for run, own in zip(once, parts, strict=True):
        others = [each for each in parts if each != own]
        n = next(n for n in range(1, len(own) + 1) if all(e[-n:] != own[-n:] for e in others))
        named.append(run if n == 1 else replace(run, label="/".join(own[-n:])))
    return named


def read_run(directory: Path) -> RunRecord:
    """Reads the files of a run.

    Raises InputNotFound where the directory holds no run, DataError for a file that is damaged.
    """
    if not (directory / outputs.RUN).is_file():
        inside = sorted(path.parent.name for path in directory.glob(f"*/{outputs.RUN}"))
        raise InputNotFound(
            "this is not a run of pretrain or finetune"
            if directory.is_dir()
            else "there is no run",
            where=str(directory),
            next=f"name one of the runs in it: {', '.join(inside[:5])}"
            if inside
            else "name a run directory: the --output-dir of pretrain or finetune",
        )
    facts = _json(directory / outputs.RUN)
    if not isinstance(facts.get("command"), str):
        raise _damaged(directory / outputs.RUN, "it names no command")
    config = directory / outputs.CONFIG
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _damaged(config, str(error)) from error
    return RunRecord(
        directory=directory,
        facts=facts,
        config=settings or {},
        metrics=_lines(directory / outputs.METRICS),
        timing=_lines(directory / outputs.TIMING),
        evaluation=_json(directory / outputs.MEASURED),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return list(jsonl.read_records(path)) if path.exists() else []


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(found, dict):
        raise _damaged(path, "it holds no JSON object")
    return found


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"cannot read a file of the run: {reason}",
        where=str(path),
        kept="the run, untouched",
        next="restore the file, or report another run",
    )
