"""What is measured when a run begins, and kept as it was while the run goes on."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import accelerate
import torch
import transformers

import llmkit
from llmkit.config.schema import TrainConfig
from llmkit.training import auto, probe, utilization
from llmkit.training.budget import Clock
from llmkit.training.module import Objective
from llmkit.training.runtime import Processes
from llmkit.training.session import Session
from llmkit.training.tasks import Examples


def environment() -> dict[str, Any]:
    """Versions and settings that repetition to the bit depends on."""
    return {
        "llmkit": llmkit.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "threads": torch.get_num_threads(),
    }


def kept(recorded: Mapping[str, Any], train: TrainConfig, session: Session) -> dict[str, Any]:
    """The choices of a run that goes on: measuring anew might come out otherwise.

    What changes no result may be asked for anew. Warns where the machine has changed.
    """
    for key, value in {**environment(), "processes": session.processes.count}.items():
        if recorded.get(key) != value:
            session.console.warn(
                f"{key} was {recorded.get(key)}, is now {value}: last digits may differ"
            )
    free = ("micro_batch_size", "compile", "logging_steps", "eval_steps", "save_steps")
    wishes = {key: getattr(train, key) for key in free}
    return {**recorded, **{key: wish for key, wish in wishes.items() if wish != "auto"}}


def measured(
    train: TrainConfig,
    objective: Objective,
    examples: Examples,
    validation: Examples | None,
    batch: int,
    session: Session,
) -> dict[str, Any]:
    """The micro-batch that fits, whether compiling pays, how many steps the minutes hold, and how
    often to validate; said in one line."""
    processes = session.processes
    share = math.ceil(batch / processes.count)
    wish = None if train.micro_batch_size == "auto" else min(train.micro_batch_size, share)
    size, seconds = probe.fit(objective, examples, share, wish, processes)
    full_rate = _full_rate(objective, examples, processes)  # counted with the usual attention
    attention, quickest = probe.attention(objective, examples, size, processes)
    seconds = min(seconds, quickest)
    rounds = math.ceil(share / size)
    most = auto.most_steps(train, len(examples), batch)
    steps = _steps(train, most, seconds * rounds, session.clock)
    compiling, reason = train.compile is True, "as asked"
    if train.compile == "auto":
        compiling, reason = probe.compiling_pays(steps * rounds * seconds, examples)
        if processes.largest([compiling])[0]:
            faster, reason = probe.compiled(objective, examples, size, processes)
            compiling, seconds = faster < seconds, min(faster, seconds)
    per_step = seconds * rounds
    steps = _steps(train, most, per_step, session.clock)
    validation_seconds = probe.measuring(objective, validation, size, processes)
    intervals = auto.intervals(train, steps, steps * per_step, validation_seconds)
    numbers = {"steps": steps, "compile": int(compiling), **intervals}
    # Each process has its own stopwatch; all must come to the same.
    agreed = dict(zip(numbers, processes.largest(list(numbers.values())), strict=True))
    steps, compiling = int(agreed.pop("steps")), bool(agreed.pop("compile"))
    epochs = steps * batch / len(examples)
    session.console.say(
        f"{steps} steps of {batch} sequences ({epochs:.2g} epochs), {size} at once; "
        f"precision {processes.precision}; compile {str(compiling).lower()} ({reason})"
    )
    return {
        **{key: int(value) for key, value in agreed.items()},
        "micro_batch_size": size,
        "precision": processes.precision,
        "compile": compiling,
        "attention": attention,
        "epochs": epochs,
        "plan": [list(revision) for revision in train.plan] or [[0, steps]],
        "validation_seconds": round(validation_seconds, 3),
        "processes": processes.count,
        "full_rate": full_rate,
        **environment(),
    }


def _full_rate(objective: Objective, examples: Examples, processes: Processes) -> float | None:
    """Predictions per second if all processes did nothing but multiply matrices; None where
    examples differ in what they ask for."""
    if probe.lengths_differ(examples):
        return None
    rate = utilization.matrix_rate(processes.device, processes.precision)
    return rate * processes.count / utilization.operations(objective, examples, processes.device)


def _steps(train: TrainConfig, most: int | None, per_step: float, clock: Clock) -> int:
    if train.max_minutes is None:
        assert most is not None
        return most
    left = 60 * train.max_minutes - clock.seconds()
    fitting = max(1, int(left / (1.1 * per_step)))
    return min(fitting, most) if most else fitting
