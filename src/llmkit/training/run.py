"""A whole training run around the engine: probe, resume, train, export. Every command that trains
ends here, with its own model, task and examples."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import llmkit
from llmkit import durable
from llmkit.config import render
from llmkit.config.schema import Config
from llmkit.errors import Diverged
from llmkit.reporting import metrics, plots
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
    requested: Config
    """The config as the user gave it."""
    config: Config
    """The same with what the command has settled."""
    directory: Path
    content: Mapping[str, str]
    """Content hashes by what they are of."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    from_scratch: bool
    task: Task
    examples: Examples
    tokens_per_example: int
    rows_of_step: Callable[..., Any]
    """(step, global_batch_size=, limit=) -> rows of the examples."""
    validation: Examples | None
    validation_task: Task
    resumed: Checkpoint | None
    unit: str
    """What a prediction is called: `tokens` or `examples`."""


def carry_out(
    job: Job,
    console: Console,
    processes: Processes,
    stop: StopSignal,
    clock: Clock,
    look: Callable[[], Mapping[str, Any]],
) -> dict[str, Any]:
    """Trains the job from its checkpoint or from the start, exports the model to `final/`, and
    returns the figures of the run."""
    work, choices = _work(job, console, processes, clock)
    state = _state(job, work, choices)
    train = job.config.train
    resolved = _resolved(job.config, work.settings, choices)
    if processes.is_main:
        _write_down(job, resolved)
    with training_display(console, state.step) as display:
        record = Record(
            directory=job.directory,
            settings=work.settings,
            processes=processes,
            display=display,
            clock=clock,
            save_model=partial(save_model, work.model, job.tokenizer),
            optimizer_tensors=work.optimizer.state,
            identity={
                "requested": identity.keys(job.requested),
                "resolved": identity.keys(resolved),
                "content": dict(job.content),
                "choices": choices,
            },
            unit=job.unit,
            budget=_budget(train.max_minutes, clock, state),
            most_steps=auto.most_steps(train, len(job.examples), work.settings.global_batch_size),
            track=processes.track if job.config.report_to else None,
        )
        record.begin(state)
        began, before = time.monotonic(), state.predictions
        state = engine.train(work, state, record, stop, look)
        seconds = time.monotonic() - began
    final = job.directory / "final"
    if processes.is_main:
        durable.clean(job.directory)
        fill = partial(save_model, work.model, job.tokenizer)
        durable.commit(final, fill, {"step": state.step})
        plots.loss_curve(job.directory / "metrics.jsonl", job.directory / "loss.png")
    processes.wait()
    figures = metrics.last(job.directory / "metrics.jsonl")
    return {
        "command": job.command,
        "run_dir": str(job.directory),
        "model_dir": str(final),
        "step": state.step,
        "seconds": round(clock.seconds(), 3),
        f"{job.unit}_per_second": round((state.predictions - before) / max(1e-9, seconds), 1),
        "train_loss": figures.get("train_loss"),
        "validation": {
            name.removeprefix("validation_"): value
            for name, value in figures.items()
            if name.startswith("validation_")
        },
        "best_step": state.best_step,
        "parameters": work.model.num_parameters(),
    }


def resume_point(
    directory: Path,
    config: Config,
    content: Mapping[str, str],
    processes: Processes,
    console: Console,
) -> Checkpoint | None:
    """The checkpoint to go on from, if there is one; it is the same for all processes.

    Raises ConfigError when it belongs to another run, NoValidCheckpoint when none is whole.
    """
    root, found = directory / "checkpoints", None
    if config.resume not in ("auto", "never"):
        found = checkpoint.named(Path(config.resume))
    elif processes.is_main:
        found = checkpoint.newest(root, console.warn)
    step = int(processes.largest([found.state.step if found else -1])[0])
    if step >= 0 and found is None:
        found = checkpoint.named(checkpoint.directory_of(root, step))
    if found is not None:
        identity.check(found.identity, config, content, where=str(found.directory))
        console.say(f"going on from step {found.state.step} ({found.directory})")
    return found


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes model and tokenizer as plain transformers reads them.

    Raises Diverged rather than save a weight that is no number.
    """
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise Diverged(
                f"the weight {name} is not finite; it was not saved", where=str(directory)
            )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


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


def _work(
    job: Job, console: Console, processes: Processes, clock: Clock
) -> tuple[engine.Work, dict[str, Any]]:
    train, model = job.config.train, job.model.to(processes.device)
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    objective = Objective(job.task, model)
    optimizer = NamedOptimizer(model, auto.optimizer(train, job.from_scratch), train)
    hidden = int(model.config.hidden_size)
    batch = auto.global_batch_size(
        train, len(job.examples), job.tokens_per_example, hidden, processes.device.type
    )
    choices = _kept_choices(job, console, processes) or _choose(
        job, console, processes, clock, objective, optimizer, batch
    )
    settings = auto.settings(train, job.config.seed, batch, hidden, job.from_scratch, choices)
    if choices["compile"]:
        objective.compile(dynamic=False)
    limit = auto.examples_to_see(train, len(job.examples))
    work = engine.Work(
        task=job.task,
        model=model,
        objective=objective,
        distributed=processes.distribute(objective),
        optimizer=optimizer,
        examples=job.examples,
        rows_of_step=partial(job.rows_of_step, global_batch_size=batch, limit=limit),
        validation=job.validation,
        validation_task=job.validation_task,
        settings=settings,
        processes=processes,
    )
    return work, choices


def _state(job: Job, work: engine.Work, choices: Mapping[str, Any]) -> State:
    if job.resumed is None:
        return State(step=0, plan=Plan(tuple(Revision(*p) for p in choices["plan"])), seconds=0.0)
    work.optimizer.load_state(job.resumed.optimizer_tensors())
    return job.resumed.state


def _kept_choices(job: Job, console: Console, processes: Processes) -> dict[str, Any] | None:
    """What was measured when the run began: measuring anew might come out otherwise."""
    if job.resumed is None:
        return None
    choices = dict(job.resumed.identity["choices"])
    for key, value in {**environment(), "processes": processes.count}.items():
        if choices.get(key) != value:
            console.warn(f"{key} was {choices.get(key)}, is now {value}: last digits may differ")
    train = job.config.train
    free = ("micro_batch_size", "compile", "logging_steps", "eval_steps", "save_steps")
    wishes = {key: getattr(train, key) for key in free}
    return {**choices, **{key: wish for key, wish in wishes.items() if wish != "auto"}}


def _choose(
    job: Job,
    console: Console,
    processes: Processes,
    clock: Clock,
    objective: Objective,
    optimizer: NamedOptimizer,
    batch: int,
) -> dict[str, Any]:
    """What is measured on this machine: the micro-batch that fits, whether compiling pays, and how
    many steps the minutes hold."""
    train = job.config.train
    share = math.ceil(batch / processes.count)
    wish = None if train.micro_batch_size == "auto" else min(train.micro_batch_size, share)
    size, seconds = probe.fit(objective, optimizer, job.examples, share, wish, processes)
    per_step = seconds * math.ceil(share / size)
    steps: float = math.inf
    if (most := auto.most_steps(train, len(job.examples), batch)) is not None:
        steps = most
    if train.max_minutes is not None:
        left = 60 * train.max_minutes - clock.seconds()
        steps = max(1, min(steps, int(left / (1.1 * per_step))))
    compiling, reason = train.compile is True, "as asked"
    if train.compile == "auto":
        pays, reason = probe.compiling_pays(steps * per_step)
        compiling = bool(processes.largest([pays])[0])
    steps = int(processes.largest([steps])[0])
    console.say(
        f"{steps} steps of {batch} sequences, {size} at once; precision {processes.precision}; "
        f"compile {str(compiling).lower()} ({reason})"
    )
    validation_batches = len(job.validation or ()) / size / processes.count
    # An fp32 forward takes about as long as a bf16 forward and backward.
    intervals = auto.intervals(train, steps, steps * per_step, validation_batches * seconds)
    return {
        **{key: int(processes.largest([value])[0]) for key, value in intervals.items()},
        "micro_batch_size": size,
        "precision": processes.precision,
        "compile": compiling,
        "plan": [[0, steps]],
        "processes": processes.count,
        **environment(),
    }


def _budget(minutes: float | None, clock: Clock, state: State) -> Budget | None:
    if minutes is None:
        return None
    return Budget(clock, 60 * minutes, state.step, reserve=0.02 * 60 * minutes + 2)


def _resolved(config: Config, settings: Settings, choices: Mapping[str, Any]) -> Config:
    """The config with what every `auto` of training came to."""
    names = {"warmup": "warmup_steps"}
    values = {
        names.get(key, key): value for key, value in asdict(settings).items() if key != "seed"
    }
    values |= {key: choices[key] for key in ("precision", "compile")}
    return config.model_copy(update={"train": config.train.model_copy(update=values)})


def _write_down(job: Job, resolved: Config) -> None:
    record = {
        "command": job.command,
        "arguments": sys.argv[1:],
        "content": dict(job.content),
        "environment": environment(),
    }
    durable.replace_text(job.directory / "run.json", json.dumps(record, indent=1) + "\n")
    durable.replace_text(job.directory / "config.yaml", render.as_yaml(resolved))
