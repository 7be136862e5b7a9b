"""Resolve every `auto` that depends on the model and the machine, when a run begins.

The task resolves those that follow from its data before: `tasks/sizing.py` the size of new models,
`tasks/defaults.py` the settings of training, `tasks/objectives.py` the objective.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import accelerate
import torch
import transformers

import llmkit
from llmkit.config.resolved import Resolved, ResolvedTrain
from llmkit.config.schema import TrainConfig
from llmkit.distributed import device
from llmkit.distributed.processes import Processes
from llmkit.errors import ConfigError
from llmkit.reporting.format import clock as duration
from llmkit.reporting.format import many
from llmkit.training import probe, schedule
from llmkit.training.checkpoint import State
from llmkit.training.forecast import compiling
from llmkit.training.loss_module import LossModule
from llmkit.training.schedule import Clock, Plan, Revision
from llmkit.training.tasks import defaults
from llmkit.training.tasks.task import Examples, Session, Task


@dataclass(frozen=True)
class Choices:
    """Decisions of a run besides its config; recorded in its checkpoints."""

    max_eval_samples: int
    logging_steps: int
    save_steps: int
    eval_steps: int
    micro_batch_size: int
    precision: str
    compile: bool
    attention: str
    epochs: float
    plan: Plan
    step_seconds: float
    validation_seconds: float
    processes: int
    full_rate: float | None
    """Predictions per second at the machine's peak matrix rate."""
    environment: Mapping[str, Any]
    """Versions and settings when the run began."""
    weight_decay: float
    lengthened: tuple[Mapping[str, Any], ...] = ()
    """The steps at which the length of the run was changed, with the changed keys."""

    def to_json(self) -> dict[str, Any]:
        """The choices as JSON values."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        found |= {"plan": [[r.step, r.total_steps] for r in self.plan.revisions]}
        if not self.lengthened:
            del found["lengthened"]
        place = list(found).index("environment")
        items = list(found.items())
        return dict([*items[:place], *self.environment.items(), *items[place + 1 :]])

    @classmethod
    def from_json(cls, recorded: Mapping[str, Any]) -> Choices:
        """The choices that `to_json` recorded."""
        own = {field.name for field in fields(cls)} & recorded.keys()
        values = {name: recorded[name] for name in own}
        values["plan"] = Plan(tuple(Revision(*revision) for revision in recorded["plan"]))
        values["environment"] = {k: recorded[k] for k in environment() if k in recorded}
        return cls(**{**values, "lengthened": tuple(recorded.get("lengthened", ()))})


def environment() -> dict[str, Any]:
    """Versions and settings that bit-identical repetition depends on."""
    return {
        "llmkit": llmkit.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "threads": torch.get_num_threads(),
    }


def kept_choices(recorded: Choices, train: TrainConfig, session: Session) -> Choices:
    """The choices of a resumed run, which are not measured again since results could differ.

    Choices that change no result follow the current config. Warns if the machine has changed.
    """
    before = {**recorded.environment, "processes": recorded.processes}
    for key, value in {**environment(), "processes": session.processes.count}.items():
        if before.get(key) != value:
            session.console.warn(
                f"{key} was {before.get(key)}, is now {value}: last digits may differ"
            )
    free = ("micro_batch_size", "compile", "logging_steps", "eval_steps", "save_steps")
    choices = {key: getattr(train, key) for key in free}
    return replace(
        recorded, **{key: requested for key, requested in choices.items() if requested != "auto"}
    )


def lengthened(
    recorded: Choices,
    changed: Mapping[str, Any],
    task: Task,
    batch: int,
    state: State,
    clock: Clock,
) -> Choices:
    """The choices of a run whose length is changed at a state, by the changed keys.

    Everything that depends on the length is resolved again, except the weight decay, which the
    weights are adapted to. Raises ConfigError if the run has already passed the new length.
    """
    train, n_examples = task.config.train, len(task.examples)
    most = defaults.most_steps(train, n_examples, batch)
    total, minutes = most, time_limit(train)
    if minutes is not None:
        left = max(0.0, 60 * minutes - clock.seconds())
        total = state.step + int(left / (1.1 * recorded.step_seconds))
        total = total if most is None else min(total, most)
    assert total is not None
    if total < state.step:
        raise ConfigError(
            f"the run has already done {state.step} steps, but {total} are asked for",
            where="train.max_steps" if train.max_steps is not None else "train.num_train_epochs",
            kept="the run and all its checkpoints, untouched",
            next=f"ask for more than {state.step} steps, or start a shorter run with another "
            "--output-dir",
        )
    seconds = total * recorded.step_seconds
    share = defaults.validation_share(recorded.max_eval_samples, total * batch, total)
    if minutes is not None:
        share = recorded.validation_seconds / max(1e-9, seconds)
    intervals: dict[str, Any] = defaults.intervals(train, total, share, seconds)
    return replace(
        recorded,
        **intervals,
        epochs=total * batch / n_examples,
        plan=state.plan.revised(state.step, total),
        lengthened=(*recorded.lengthened, {"step": state.step, "changed": changed}),
    )


def measured_choices(task: Task, objective: LossModule, batch: int, clock: Clock) -> Choices:
    """Choose the micro-batch size, compilation, number of steps, and how often and on how much to
    validate. Without a time limit, measurements only decide what changes no number, but for the
    last digits that compiled code changes."""
    train, examples, session = task.config.train, task.examples, task.session
    processes, minutes = session.processes, time_limit(train)
    step = _measured_step(task, objective, batch, clock)
    most = defaults.most_steps(train, len(examples), batch)
    steps = planned_steps(train, most, step.seconds, clock)
    validating, counts = _measured_validation(task, objective, batch, step, steps)
    agreed: dict[str, Any] = _agreed(
        {"steps": steps, "compile": int(step.compile), **counts}, processes
    )
    steps, compiles = agreed.pop("steps"), bool(agreed.pop("compile"))
    epochs = steps * batch / len(examples)
    session.console.say(
        f"{_expected(steps, steps * step.seconds, minutes)}: {batch} sequences per step, "
        f"micro-batch {step.micro_batch_size}, {epochs:.2g} epochs; precision "
        f"{processes.precision}; compile {str(compiles).lower()} ({step.reason})"
    )
    _warn(task, steps, most, step.seconds, counts["max_eval_samples"], clock)
    revisions = [Revision(*revision) for revision in train.plan] or [Revision(0, steps)]
    return Choices(
        **agreed,
        micro_batch_size=step.micro_batch_size,
        precision=processes.precision,
        compile=compiles,
        attention=step.attention,
        epochs=epochs,
        plan=Plan(tuple(revisions)),
        step_seconds=round(step.seconds, 4),
        validation_seconds=round(validating, 3),
        processes=processes.count,
        full_rate=_full_rate(step.operations, processes),
        environment=environment(),
        weight_decay=defaults.weight_decay(train, epochs, task.from_scratch),
    )


class _Step(NamedTuple):
    """How a step is computed, and what it costs."""

    micro_batch_size: int
    attention: str
    compile: bool
    reason: str
    """Why it is compiled or not."""
    seconds: float
    """Of a step."""
    operations: float | None
    """Of training per prediction; None if examples differ in length."""


def _measured_step(task: Task, objective: LossModule, batch: int, clock: Clock) -> _Step:
    """Choose the micro-batch size, the attention, and whether to compile, by measuring each."""
    train, examples, processes = task.config.train, task.examples, task.session.processes
    share = math.ceil(batch / processes.count)
    requested = None if train.micro_batch_size == "auto" else min(train.micro_batch_size, share)
    size, seconds = probe.fit(objective, examples, share, requested, processes)
    operations = _operations(objective, examples, processes)  # counted with the default attention
    attention, quickest = probe.quickest_attention(objective, examples, size, processes)
    seconds = min(seconds, quickest)
    rounds = math.ceil(share / size)
    compiles, reason = train.compile is True, "as asked"
    if train.compile == "auto":
        most = defaults.most_steps(train, len(examples), batch)
        steps = planned_steps(train, most, seconds * rounds, clock)
        work = steps * rounds * seconds
        quick, reason = _compiled(objective, examples, size, work, seconds, processes)
        compiles, seconds = quick < seconds, min(seconds, quick)
    elif compiles and not probe.lengths_differ(examples):
        quick, _ = probe.compiled(objective, examples, size, seconds, processes)
        seconds = quick if quick < math.inf else seconds
    return _Step(size, attention, compiles, reason, seconds * rounds, operations)


def _measured_validation(
    task: Task, objective: LossModule, batch: int, step: _Step, steps: int
) -> tuple[float, dict[str, int]]:
    """The seconds of a validation; and on how many examples and after how many steps to validate,
    log and save."""
    train, validation, minutes = task.config.train, task.validation, time_limit(task.config.train)
    size, processes = step.micro_batch_size, task.session.processes
    whole = probe.measuring(objective, validation, size, processes)
    held_out = _held_out(train, validation, whole, minutes)
    validating = whole * held_out / max(1, len(validation or ()))
    taken = defaults.validation_share(held_out, steps * batch, steps)
    if minutes is not None:
        taken = validating / max(1e-9, steps * step.seconds)
    intervals = defaults.intervals(train, steps, taken, steps * step.seconds)
    return validating, {"max_eval_samples": held_out, **intervals}


def _compiled(
    objective: LossModule,
    examples: Examples,
    size: int,
    work: float,
    eager: float,
    processes: Processes,
) -> tuple[float, str]:
    """Seconds of a compiled micro-batch in a run that takes `work` seconds without compilation,
    `eager` seconds a micro-batch, and a short reason; infinite if compilation does not pay off or
    fails."""
    length = probe.row_length(examples, examples.longest_first()[0])
    kind = compiling.kind_of_run(objective.model, length, size, processes)
    expected = compiling.expected_compilation(kind)
    pays, reason = compiling.compiling_pays(work, probe.lengths_differ(examples), expected)
    if not processes.largest([pays])[0]:
        return math.inf, reason
    return probe.compiled(objective, examples, size, eager, processes)


def _agreed(numbers: Mapping[str, int], processes: Processes) -> dict[str, int]:
    """The numbers of the main process, for all processes: their measurements differ."""
    largest = processes.largest(list(numbers.values()))
    return {name: int(value) for name, value in zip(numbers, largest, strict=True)}


def _expected(steps: int, seconds: float, minutes: float | None) -> str:
    """The expected length of the run, formatted for the console."""
    if minutes is None:
        return f"{many(steps, 'step')}, about {duration(seconds)} on this machine"
    return f"about {steps} steps fit into {schedule.readable_minutes(minutes)}"


def _warn(
    task: Task, steps: int, most: int | None, per_step: float, held_out: int, clock: Clock
) -> None:
    """Warn before training if the time limit is too short."""
    session, validation, minutes = task.session, task.validation, time_limit(task.config.train)
    if minutes is None:
        return
    if validation and held_out < len(validation):
        session.console.say(
            f"validation: {held_out:,} of {len(validation):,} examples, sampled at random; all of "
            f"them would take more than a tenth of {schedule.readable_minutes(minutes)}"
        )
    if steps < min(schedule.FEW_STEPS, most or schedule.FEW_STEPS):
        needed = schedule.minutes_needed(clock.seconds(), per_step)
        session.console.warn(schedule.too_few(steps, minutes, needed, before=True))


def time_limit(train: TrainConfig) -> float | None:
    """The time limit of a run in minutes; a recorded plan replaces the clock."""
    return None if train.plan else train.max_minutes


def _held_out(
    train: TrainConfig, validation: Examples | None, seconds: float, minutes: float | None
) -> int:
    """The number of validation examples: all, unless two validations of these seconds would exceed
    the share of the time limit for validation."""
    if not validation:
        return 0
    if train.max_eval_samples != "auto":
        return min(train.max_eval_samples, len(validation))
    allowed = math.inf if minutes is None else schedule.VALIDATION_SHARE * 60 * minutes / 2
    return max(1, int(len(validation) * min(1.0, allowed / max(seconds, 1e-9))))


def _operations(objective: LossModule, examples: Examples, processes: Processes) -> float | None:
    """Operations of training per prediction; None if examples differ in length."""
    if probe.lengths_differ(examples):
        return None
    return probe.operations(objective, examples, processes.device)


def _full_rate(operations: float | None, processes: Processes) -> float | None:
    """Predictions per second at the peak matrix rate of all processes."""
    if operations is None:
        return None
    rate = device.matrix_rate(processes.device, processes.precision)
    return rate * processes.count / operations


def planned_steps(train: TrainConfig, most: int | None, per_step: float, clock: Clock) -> int:
    """The number of steps of a run: at most `most`, and as many as fit into its time limit."""
    if train.plan:
        return train.plan[-1][1]
    if train.max_minutes is None:
        assert most is not None
        return most
    left = 60 * train.max_minutes - clock.seconds()
    fitting = max(1, int(left / (1.1 * per_step)))
    return min(fitting, most) if most else fitting


def resolve_config(
    task: Task, hidden_size: int, batch: int, chosen: Choices, validation: Examples | None
) -> Resolved:
    """The fully resolved config of a run, given the model's hidden size and the validation
    examples."""
    train = task.config.train
    warmup = 0.03 if train.warmup_steps == "auto" else train.warmup_steps
    total_steps = chosen.plan.revisions[0].total_steps
    values: dict[str, Any] = {
        "learning_rate": defaults.learning_rate(train, hidden_size, task.from_scratch),
        "optimizer": defaults.optimizer(train, task.from_scratch),
        "lr_scheduler_type": "linear",
        "load_best_model_at_end": chosen.epochs > 1,
    }
    values = {key: v for key, v in values.items() if getattr(train, key) == "auto"} | {
        "global_batch_size": batch,
        "warmup_steps": warmup if warmup < 1 else min(1.0, warmup / max(1, total_steps)),
    }
    measured = (
        "micro_batch_size", "weight_decay", "logging_steps", "eval_steps", "save_steps",
        "precision", "compile",
    )  # fmt: skip
    values |= {key: getattr(chosen, key) for key in measured}
    if validation is not None:
        values["max_eval_samples"] = len(validation)
    resolved = ResolvedTrain.model_construct(**{**dict(train), **values})
    return Resolved.model_construct(**{**dict(task.config), "train": resolved})


def pinned(resolved: Resolved, plan: Plan) -> Resolved:
    """The config that repeats a finished run: its recorded plan replaces the clock."""
    values: dict[str, Any] = {"plan": tuple((r.step, r.total_steps) for r in plan.revisions)}
    if resolved.train.max_minutes is not None:
        values |= {"max_minutes": None, "max_steps": plan.total_steps}
    return resolved.changed(train=values)
