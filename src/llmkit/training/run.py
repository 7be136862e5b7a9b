"""A whole training run around the engine: probe, resume, train, export. Every trained command
ends here, with its own model, task and examples."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import llmkit
from llmkit import durable
from llmkit.config.schema import Config
from llmkit.errors import Diverged
from llmkit.reporting import plots
from llmkit.reporting.console import Console
from llmkit.reporting.progress import training_display
from llmkit.training import auto, checkpoint, engine, identity, probe
from llmkit.training.budget import Budget, Clock
from llmkit.training.checkpoint import Checkpoint, State
from llmkit.training.optimizer import NamedOptimizer
from llmkit.training.record import Record
from llmkit.training.runtime import Processes
from llmkit.training.schedule import Plan, Revision
from llmkit.training.settings import Settings
from llmkit.training.signals import StopSignal
from llmkit.training.tasks import Examples, Objective, Task


@dataclass(frozen=True)
class Job:
    """What a command hands over: what to train, on what, and where the result goes."""

    command: str
    config: Config
    directory: Path
    content: Mapping[str, str]
    """Content hashes of data and tokenizer by what they are of."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    from_scratch: bool
    task: Task
    examples: Examples
    tokens_per_example: int
    validation: Examples | None
    validation_task: Task
    rows_of_step: Callable[[int, int, int | None], Any]
    """(step, global batch size, examples to see) -> rows."""
    resumed: Checkpoint | None
    unit: str


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to."""

    state: State
    settings: Settings
    model_dir: Path
    seconds: float
    per_second: float
    train_loss: float | None
    validation: dict[str, float] | None


def carry_out(
    job: Job,
    console: Console,
    processes: Processes,
    stop: StopSignal,
    clock: Clock,
    evaluated: Callable[[int], None],
) -> Outcome:
    """Trains the job from its checkpoint or from the start, and exports the model to `final/`."""
    train = job.config.train
    model = job.model.to(processes.device)
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    objective = Objective(job.task, model)
    hidden = int(model.config.hidden_size)
    optimizer = NamedOptimizer(model, auto.optimizer(train, job.from_scratch), train)
    batch = auto.global_batch_size(
        train, len(job.examples), job.tokens_per_example, hidden, processes.device.type
    )
    choices = _choose(job, console, processes, clock, objective, optimizer, batch)
    plan = Plan(tuple(Revision(*pair) for pair in choices["plan"]))
    settings = auto.settings(
        train, job.config.seed, batch, hidden, job.from_scratch, plan.revisions[0].total_steps,
        choices["micro_batch_size"],
    )  # fmt: skip
    if choices["compile"]:
        objective.compile(dynamic=False)
    work = engine.Work(
        task=job.task,
        model=model,
        objective=objective,
        distributed=processes.distribute(objective),
        optimizer=optimizer,
        examples=job.examples,
        rows_of_step=partial(_rows, job, batch, auto.examples_to_see(train, len(job.examples))),
        validation=job.validation,
        validation_task=job.validation_task,
        settings=settings,
        processes=processes,
    )
    state = State(step=0, plan=plan, seconds=0.0)
    if job.resumed is not None:
        state = job.resumed.state
        optimizer.load_state(job.resumed.optimizer_tensors())
    with training_display(console, state.step) as display:
        record = Record(
            directory=job.directory,
            settings=settings,
            processes=processes,
            display=display,
            clock=clock,
            save_model=partial(save_model, model, job.tokenizer),
            optimizer_tensors=optimizer.state,
            identity={**_identity(job), "choices": {**choices}},
            unit=job.unit,
            budget=_budget(train.max_minutes, clock, state, choices),
            most_steps=auto.most_steps(train, len(job.examples), batch),
            track=partial(_track, processes) if job.config.report_to else None,
        )
        record.begin(state)
        began, before = time.monotonic(), state.predictions
        state = engine.train(work, state, record, stop, evaluated)
    training_seconds = time.monotonic() - began
    model_dir = job.directory / "final"
    if processes.is_main:
        _export(model_dir, model, job.tokenizer, state)
        plots.loss_curve(job.directory / "metrics.jsonl", job.directory / "loss.png")
    processes.wait()
    figures = _last_figures(job.directory / "metrics.jsonl")
    return Outcome(
        state=state,
        settings=settings,
        model_dir=model_dir,
        seconds=clock.seconds(),
        per_second=(state.predictions - before) / max(1e-9, training_seconds),
        train_loss=figures.get("train_loss"),
        validation={
            key.removeprefix("validation_"): value
            for key, value in figures.items()
            if key.startswith("validation_")
        }
        or None,
    )


def resume_point(
    directory: Path, resume: str, now: Mapping[str, Any], console: Console
) -> Checkpoint | None:
    """The checkpoint to go on from, if there is one and it belongs to this run."""
    if resume in ("auto", "never"):
        found = checkpoint.newest(directory / "checkpoints", console.warn)
    else:
        found = checkpoint.named(Path(resume))
    if found is not None:
        recorded = {key: value for key, value in found.identity.items() if key != "choices"}
        identity.check(recorded, now, where=str(found.directory))
        console.say(f"going on from step {found.state.step} ({found.directory})")
    return found


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes model and tokenizer as plain transformers reads them; raises Diverged rather than save
    a weight that is no number."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise Diverged(
                f"the weight {name} is not finite; it was not saved", where=str(directory)
            )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def environment() -> dict[str, Any]:
    """Versions and settings that bit-identical repetition depends on."""
    import accelerate
    import transformers

    return {
        "llmkit": llmkit.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "threads": torch.get_num_threads(),
    }


def _identity(job: Job) -> dict[str, Any]:
    return identity.identity(job.command, job.config, job.content)


def _rows(job: Job, batch: int, limit: int | None, step: int) -> Any:
    return job.rows_of_step(step, batch, limit)


def _choose(
    job: Job,
    console: Console,
    processes: Processes,
    clock: Clock,
    objective: Objective,
    optimizer: NamedOptimizer,
    batch: int,
) -> dict[str, Any]:
    """What is measured on the machine; a run that goes on keeps what it was begun with."""
    if job.resumed is not None:
        choices = dict(job.resumed.identity["choices"])
        for key, value in {**environment(), "processes": processes.count}.items():
            if choices.get(key) != value:
                console.warn(
                    f"{key} was {choices.get(key)}, is now {value}: the last digits may differ"
                )
        return choices
    train = job.config.train
    share = math.ceil(batch / processes.count)
    wish = None if train.micro_batch_size == "auto" else min(train.micro_batch_size, share)
    size, seconds = probe.fit(objective, optimizer, job.examples, share, wish, processes)
    per_step = seconds * math.ceil(share / size)
    most = auto.most_steps(train, len(job.examples), batch)
    steps = most or math.inf
    if train.max_minutes is not None:
        left = 60 * train.max_minutes - clock.seconds()
        steps = max(1, min(steps, int(left / (1.1 * per_step))))
    compiling, reason = train.compile is True, "as asked"
    if train.compile == "auto":
        compiling, reason = probe.compiling_pays(steps * per_step)
        compiling = bool(processes.largest([compiling])[0])
    steps = int(processes.largest([steps])[0])
    console.say(
        f"precision {processes.precision}; compile {str(compiling).lower()} ({reason}); "
        f"{batch} sequences a step, {size} at once; {steps} steps planned"
    )
    return {
        "micro_batch_size": size,
        "precision": processes.precision,
        "compile": compiling,
        "plan": [[0, steps]],
        "processes": processes.count,
        **environment(),
    }


def _budget(
    minutes: float | None, clock: Clock, state: State, choices: Mapping[str, Any]
) -> Budget | None:
    if minutes is None:
        return None
    return Budget(clock, 60 * minutes, state.step, reserve=0.02 * 60 * minutes + 2)


def _track(processes: Processes, figures: Mapping[str, float], step: int) -> None:
    processes.accelerator.log(dict(figures), step=step)


def _export(
    target: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, state: State
) -> None:
    """`final/`, by the same protocol as a checkpoint."""
    durable.clean(target.parent)
    durable.commit(target, partial(save_model, model, tokenizer), {"step": state.step})


def _last_figures(metrics: Path) -> dict[str, float]:
    """The last value of each figure in metrics.jsonl."""
    figures: dict[str, float] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        figures |= json.loads(line)
    return figures


__all__ = ["Job", "Outcome", "carry_out", "dataclasses", "environment", "replace", "resume_point"]
