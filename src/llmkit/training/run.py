"""A complete run of a task: check, resume, train, export, measure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from llmkit.config.resolved import Resolved
from llmkit.config.schema import Config
from llmkit.data.examples import subset
from llmkit.data.readers.files import Sources
from llmkit.data.text import fingerprints
from llmkit.distributed import failures
from llmkit.distributed.processes import Processes, join_processes
from llmkit.distributed.signals import StopSignal, stop_signal
from llmkit.models import lora, pretrained
from llmkit.models.kernels import dropout
from llmkit.models.pretrained import Pretrained
from llmkit.reporting.console import Console
from llmkit.reporting.progress.training_display import TrainingDisplay, training_display
from llmkit.reporting.tables import report_tables
from llmkit.reporting.trackers import Tracking, tracking
from llmkit.storage import jsonl, outputs
from llmkit.training import (
    checkpoint,
    engine,
    final_model,
    loss_module,
    probe,
    resolve,
    run_directory,
    run_identity,
    schedule,
)
from llmkit.training.checkpoint import Checkpoint, State
from llmkit.training.forecast.expectation import expectation_sentence, memory_warning
from llmkit.training.loss_module import quick
from llmkit.training.optimizer import NamedOptimizer
from llmkit.training.record import Recorder
from llmkit.training.resolve import Choices
from llmkit.training.run_facts import write_facts
from llmkit.training.schedule import Clock
from llmkit.training.shards import wrapping
from llmkit.training.tasks import defaults
from llmkit.training.tasks.task import Examples, Loss, Session, Task

TaskOf = Callable[[Config, Pretrained | None], type[Task]]
"""Chooses the task of a command by its config and model."""


@dataclass(frozen=True)
class Run:
    """A running task with its model, directory and clock."""

    task: Task
    model: PreTrainedModel
    directory: Path
    resumed: Checkpoint | None
    clock: Clock
    losses: Callable[[Examples | None], Loss]
    """Makes the loss for these validation examples, or for a subset of them."""
    earlier: run_directory.FinishedRun | None
    """What the directory records of the run, if it was finished before."""

    @property
    def session(self) -> Session:
        """The processes, the console and the stop signal."""
        return self.task.session


def train_task(
    command: str, task_of: TaskOf, config: Config, sources: Sources, console: Console
) -> tuple[dict[str, Any], bool]:
    """Train or resume training, measure the finished model, and return the results, and whether
    they are those of a run that was finished before: its records are kept as they are."""
    run_directory.check_run_directory(config, command)
    with stop_signal() as stop, _processes(config) as processes:
        stop.saves = processes.count > 1  # which must stop together; one may stop at any time
        run_directory.check_seen_by_all(run_directory.locate_run(config, command), processes)
        session = Session(sources, processes, console, stop)
        named = pretrained.to_train(config)
        before = len(console.warnings)
        task = task_of(config, named).open(config, named, session)
        limits = console.warnings[before:]
        with run_directory.hold_run_directory(config, command) as held:
            directory = Path(processes.of_main(str(held)))
            resumed = _resume_point(task, directory)
            with console.waiting("preparing the model…"):
                model = _model(task, resumed)
                task = task.fitted(model, begun=resumed is None)
            for line in final_model.describe_model(model):
                console.say(line)
            clock = Clock(resumed.state.seconds if resumed else 0.0)
            earlier = run_directory.finished_run(directory, config) if processes.is_main else None
            run = Run(task, model, directory, resumed, clock, task.losses(model), earlier)
            loss = run.losses(task.validation)
            figures, validation, repeats = _carry_out(run, loss)
            if repeats and earlier is not None:
                for text in (each for each in earlier.limits if each not in console.warnings):
                    console.warn(text)
                return {**earlier.without_speed, **_places(run)}, True
            before = len(console.warnings)
            if processes.is_main:
                figures |= task.results(loss, validation, figures)
            limits += console.warnings[before:]
            figures["seconds"] = round(clock.seconds(), 3)
            if processes.is_main:
                run_directory.add_result(directory, figures, console.warnings, limits)
            return figures, False


def check_task(
    command: str, task_of: TaskOf, config: Config, sources: Sources, console: Console
) -> dict[str, Any]:
    """Check everything that a run needs, without weights and without writing; returns a report."""
    run_directory.check_run_directory(config, command)
    with _processes(config) as processes:
        session = Session(sources, processes, console, StopSignal())
        named = pretrained.to_train(config)
        report = task_of(config, named).outline(config, named, session)
        kind = processes.device.type
        if warning := memory_warning(report["expected"], processes):
            console.warn(warning)
    if console.json:
        return report
    report["expected"] = expectation_sentence(report["expected"], kind)
    return report if command == "pretrain" else report_tables(report)


def _processes(config: Config) -> Processes:
    """The processes of the run; raises ConfigError for a plan of another length."""
    defaults.check_plan(config.train)
    return join_processes(config.train.precision, config.train.ddp_timeout)


def _model(task: Task, resumed: Checkpoint | None) -> PreTrainedModel:
    """The model with the initial or resumed weights."""
    if resumed is None or task.lora is not None:
        model = task.equip(task.begin(), begun=True)
    else:
        saved = pretrained.open_model(str(resumed.directory), encoder_decoder=True)
        model = task.equip(pretrained.load_model(saved, task.purpose), begun=False)
    if task.lora is not None:
        lora.attach(model, task.lora, task.config.seed, task.head(model))
        if resumed is not None:
            lora.restore_lora(model, resumed.directory)
    return model


def _carry_out(run: Run, loss: Loss) -> tuple[dict[str, Any], Examples | None, bool]:
    """Train from the checkpoint or from the start, export the model to `final/`, and return the
    results, the examples that validations have measured, and whether the run was finished
    before."""
    task, session = run.task, run.session
    with session.console.waiting("measuring speed and memory…"):
        work, resolved, chosen = _work(run, loss)
    state, changed = _state(run, work, chosen)
    notes = list(session.console.notes)
    repeats = run.earlier is not None and state.finished
    if session.processes.is_main and not repeats:
        checkpoint.warn_of_space(
            run.directory / outputs.CHECKPOINTS, work.model.num_parameters(), session.console.warn
        )
        write_facts(task, work.model, run.directory, resolved, state.plan, chosen, notes)
        task.keep(run.directory)
        if not (run.directory / fingerprints.FINGERPRINTS).exists():
            seen = task.seen()
            with session.console.waiting("saving the hashes of the training data…"):
                earlier = fingerprints.read_fingerprints(task.config.model.name_or_path or "")
                fingerprints.write(run.directory, seen.joined(earlier))
    settings = run_identity.dotted(resolved.model_dump(mode="json"))
    steps = state.step, state.plan.total_steps
    with (
        tracking(task.config.report_to, run.directory, settings, session.console) as trackers,
        training_display(session.console, *steps, chosen.compile) as display,
    ):
        record = _record(run, work, chosen, resolved, display, state, trackers)
        if changed:
            record.replanned(state)
        began, before = time.monotonic(), state
        with failures.named_by_rank(work.processes, work.settings.micro_batch_size):
            samples = partial(task.samples, run.model, loss)
            state = engine.train(work, state, record, session.stop, samples)
        seconds = time.monotonic() - began
    if session.processes.is_main:
        if not repeats:
            pinned = resolve.pinned(resolved, state.plan)
            write_facts(task, work.model, run.directory, pinned, state.plan, chosen, notes)
        with session.console.waiting("saving the final model…"):
            final_model.export_final(
                task, work.model, run.directory, work.settings, state, not work.is_divided
            )
        if note := final_model.loading_note(work.model):
            session.console.say(note)
    session.processes.wait()
    if run.resumed is not None and before.finished:
        session.console.say(f"already finished at step {state.step}: nothing was trained again")
    return _results(run, work, before, state, seconds), work.validation, repeats


def _results(
    run: Run, work: engine.Work, before: State, state: State, seconds: float
) -> dict[str, Any]:
    """The results of a run that was trained from one state to another in these seconds; warns if
    too few steps were trained."""
    task, done = run.task, state.step - before.step
    if warning := schedule.warning_after(task.config.train, state.step, done, seconds, run.clock):
        run.session.console.warn(warning)
    figures = jsonl.last_figures(
        run.directory / outputs.METRICS, final_model.final_step(work.settings, state)
    )
    speed = (state.predictions - before.predictions) / max(1e-9, seconds)
    return {
        "command": task.command,
        **_places(run),
        "step": state.step,
        "seconds": round(run.clock.seconds(), 3),
        **({f"{task.unit}_per_second": round(speed, 1)} if done else {}),
        "train_loss": figures.get("train_loss"),
        "validation": {
            name.removeprefix("validation_"): value
            for name, value in figures.items()
            if name.startswith("validation_")
        },
        "best_step": state.best_step,
        "parameters": work.model.num_parameters(),
    }


def _places(run: Run) -> dict[str, str]:
    return {"run_dir": str(run.directory), "model_dir": str(run.directory / outputs.FINAL)}


def _resume_point(task: Task, directory: Path) -> Checkpoint | None:
    """The checkpoint to resume from, if any; it is the same on all processes.

    Raises ConfigError if it belongs to another run, NoValidCheckpoint if all are damaged.
    """
    config, processes, console = task.asked, task.session.processes, task.session.console
    root, found = directory / outputs.CHECKPOINTS, None
    if config.resume not in ("auto", "never"):
        found = checkpoint.read_checkpoint(Path(config.resume))
    elif processes.is_main:
        found = checkpoint.newest(root, console.warn)
        if found is None:
            final_model.check_unfinished(directory)
    step = int(processes.largest([found.state.step if found else -1])[0])
    if step >= 0 and found is None:
        found = checkpoint.read_checkpoint(checkpoint.directory_of(root, step), is_verified=True)
    if found is not None:
        where = str(found.directory)
        run_identity.check_same_run(found.identity, config, task.content, where, directory)
        if not found.state.finished:
            console.say(f"resuming from step {found.state.step} ({found.directory})")
    return found


def _work(run: Run, loss: Loss) -> tuple[engine.Work, Resolved, Choices]:
    task, session, processes = run.task, run.session, run.session.processes
    train, model = task.config.train, run.model
    if train.gradient_checkpointing:
        # Its old name warns if the new one exists.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if model.config.model_type in dropout.BATCH_DEPENDENT:
        session.console.warn(
            f"dropout of {model.config.model_type} depends on the micro-batch size and the number "
            "of processes: keep both for the same numbers, or set its dropout to 0"
        )
    objective = quick(loss, model, processes.device)
    if wrapping.is_chosen(train.shard, model, processes, task.undivided):
        wrapping.shard_weights(objective, processes, train.shard_size)
        session.console.say(f"each of {processes.count} processes holds a part of every weight")
    else:
        objective.to(processes.device)
    hidden = int(model.config.hidden_size)
    batch = defaults.global_batch_size(
        train, len(task.examples), task.tokens_per_example, hidden, processes.device.type
    )
    chosen = _choices(run, objective, batch)
    if chosen.compile:
        objective.compile_layers(dynamic=probe.lengths_differ(task.examples))
    limit = defaults.examples_to_see(train, len(task.examples))
    validation = task.validation and subset.drawn(task.validation, chosen.max_eval_samples)
    resolved = resolve.resolve_config(task, hidden, batch, chosen, validation)
    work = engine.Work(
        objective=objective,
        optimizer=NamedOptimizer(model, resolved.train.optimizer, resolved.train),
        examples=task.examples,
        rows_of_step=partial(task.rows_of_step, global_batch_size=batch, limit=limit),
        validation=validation,
        validation_loss=run.losses(validation),
        settings=resolved.train,
        seed=task.config.seed,
        processes=processes,
    )
    return work, resolved, chosen


def _choices(run: Run, objective: loss_module.LossModule, batch: int) -> Choices:
    """The choices of the run: made when it begins, kept when it resumes, and revised if its length
    is changed."""
    task, train = run.task, run.task.config.train
    if run.resumed is None:
        defaults.check_plan(train, defaults.most_steps(train, len(task.examples), batch))
        chosen = resolve.measured_choices(task, objective, batch, run.clock)
        if chosen.plan.revisions[0].total_steps == train.max_steps != task.asked.train.max_steps:
            run.session.console.say(
                "auto: the number of epochs is limited, so the run ends before its time limit: "
                "more epochs would overfit"
            )
        return chosen
    recorded = Choices.from_json(run.resumed.identity["choices"])
    chosen = resolve.kept_choices(recorded, train, run.session)
    if chosen.attention != run.model.config._attn_implementation:
        run.model.set_attn_implementation(chosen.attention)
    if changed := run_identity.changed_length(run.resumed.identity, task.asked):
        state = run.resumed.state
        return resolve.lengthened(chosen, changed, task, batch, state, run.clock)
    return chosen


def _record(
    run: Run,
    work: engine.Work,
    chosen: Choices,
    resolved: Resolved,
    display: TrainingDisplay,
    state: State,
    trackers: Tracking | None,
) -> Recorder:
    task = run.task
    train, batch = task.config.train, work.settings.global_batch_size
    limit = defaults.examples_to_see(train, len(task.examples))
    record = Recorder(
        directory=run.directory,
        settings=work.settings,
        processes=work.processes,
        display=display,
        clock=run.clock,
        save_model=partial(
            final_model.save_model, work.model, task.tokenizer, processes=work.processes
        ),
        optimizer_tensors=work.optimizer.state,
        identity={
            "requested": run_identity.identifying_keys(task.asked),
            "resolved": run_identity.identifying_keys(resolved),
            "content": dict(task.content),
            "choices": chosen.to_json(),
        },
        unit=task.unit,
        full_rate=chosen.full_rate,
        budget=schedule.of_run(train, run.clock, state.step, chosen.validation_seconds),
        most_steps=defaults.most_steps(train, len(task.examples), batch),
        tracking=trackers,
        progress=partial(task.progress, global_batch_size=batch, limit=limit),
    )
    display.is_estimate = record.budget is not None
    record.begin(state)
    return record


def _state(run: Run, work: engine.Work, chosen: Choices) -> tuple[State, bool]:
    """The initial or resumed state, and whether the length of the run was changed."""
    task = run.task
    if run.resumed is None:
        return State(
            0, chosen.plan, seconds=0.0, evaluated_step=-1 if task.measured_first else 0
        ), False
    work.optimizer.load_state(run.resumed.optimizer_tensors())
    state = run.resumed.state
    changed = run_identity.changed_length(run.resumed.identity, task.asked)
    if not changed:
        return state, False
    plan = chosen.plan
    changes = ", ".join(f"{key} was {old}, is now {new}" for key, (old, new) in changed.items())
    run.session.console.say(
        f"new plan from step {state.step}: {plan.total_steps} steps in total, "
        f"{state.plan.total_steps} before ({changes})"
    )
    return replace(state, plan=plan), True
