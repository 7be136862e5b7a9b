"""A whole training run around the engine: probe, resume, train, export. Every command that trains
ends here, with its own model, task and examples."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmkit.config import load
from llmkit.config.schema import Config, TrainConfig
from llmkit.data import fingerprints, subset
from llmkit.data.fingerprints import Fingerprints
from llmkit.distributed import failures
from llmkit.distributed.processes import Processes, join_processes
from llmkit.models import moe
from llmkit.models.kernels import dropout
from llmkit.reporting import plots
from llmkit.reporting.console import Console
from llmkit.reporting.progress import TrainingDisplay, training_display
from llmkit.storage import atomic, jsonl
from llmkit.training import checkpoint, choices, engine, export, identity, module, probe
from llmkit.training import directory as run_directory
from llmkit.training.budget import FEW_STEPS, Budget, Clock, minutes_needed, too_few
from llmkit.training.checkpoint import Checkpoint, State
from llmkit.training.optimizer import NamedOptimizer
from llmkit.training.record import Record
from llmkit.training.schedule import Plan, Revision
from llmkit.training.session import Session
from llmkit.training.settings import Settings
from llmkit.training.tasks import defaults, sizing
from llmkit.training.tasks.task import Examples, Loss


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
    loss: Loss
    examples: Examples
    tokens_per_example: int
    rows_of_step: Callable[..., Any]
    """(step, global_batch_size=, limit=) -> rows of the examples."""
    validation: Examples | None
    loss_of_validation: Callable[[Any], Loss]
    """Makes the loss that measures these validation examples, or some of them."""
    resumed: Checkpoint | None
    seen: Callable[[], Fingerprints]
    """Gives the fingerprints of what is trained on."""
    unit: str
    """What a prediction is called: `tokens` or `examples`."""
    progress: Callable[..., Mapping[str, float]] | None = None
    """(step, global_batch_size=, limit=) -> what else is told of the data that a step has
    reached."""
    measured_first: bool = False
    """Whether the model is validated before it is trained."""


def start(config: Config, command: str) -> Processes:
    """This process among those of the run; raises ConfigError for a plan of another length."""
    defaults.check_plan(config.train)
    directory = run_directory.locate(config, command)
    train = config.train
    return join_processes(train.precision, config.report_to, directory, train.ddp_timeout)


def carry_out(job: Job, session: Session, look: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Trains the job from its checkpoint or from the start, exports the model to `final/`, and
    returns the figures of the run."""
    if moe.are_unbalanced(job.model):
        session.console.say(
            f"{type(job.model).__name__} routes tokens to experts without a load-balancing loss: "
            "transformers has none for it"
        )
    work, chosen = _work(job, session)
    state, changed = _state(job, work, chosen, session)
    resolved = _resolved(job, work, chosen)
    if session.processes.is_main:
        checkpoint.warn_of_space(
            job.directory / "checkpoints", work.model.num_parameters(), session.console.warn
        )
        _write_down(job, resolved, state.plan, chosen)
        if not (job.directory / fingerprints.FILE).exists():
            earlier = fingerprints.read(job.config.model.name_or_path or "")
            fingerprints.write(job.directory, job.seen().joined(earlier))
    session.processes.start_trackers(identity.dotted(resolved.model_dump(mode="json")))
    with training_display(session.console, state.step, state.plan.total_steps) as display:
        record = _record(job, work, chosen, resolved, display, session.clock, state)
        if changed:
            record.replanned(state)
        began, before = time.monotonic(), state
        with failures.named_by_rank(work.processes, work.settings.micro_batch_size):
            state = engine.train(work, state, record, session.stop, look)
        seconds = time.monotonic() - began
    if session.processes.is_main:
        _write_down(job, _pinned(resolved, state.plan), state.plan, chosen)
        _export(job, work, state)
        if note := export.loading_note(work.model):
            session.console.say(note)
    session.processes.wait()
    if job.resumed is not None and before.finished:
        model = job.directory / export.FINAL
        session.console.say(f"the run is complete: {state.step} steps; its model is {model}")
    _warn_of_few_steps(job, state, before.step, seconds, session)
    figures = jsonl.last_figures(job.directory / "metrics.jsonl", _final_step(work.settings, state))
    speed = (state.predictions - before.predictions) / max(1e-9, seconds)
    return {
        "command": job.command,
        "run_dir": str(job.directory),
        "model_dir": str(job.directory / export.FINAL),
        "step": state.step,
        "seconds": round(session.clock.seconds(), 3),
        **({f"{job.unit}_per_second": round(speed, 1)} if state.step > before.step else {}),
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
    """The checkpoint to resume from, if there is one; it is the same for all processes.

    Raises ConfigError when it belongs to another run, NoValidCheckpoint when none is whole.
    """
    root, found = directory / "checkpoints", None
    if config.resume not in ("auto", "never"):
        found = checkpoint.named(Path(config.resume))
    elif processes.is_main:
        found = checkpoint.newest(root, console.warn)
        if found is None:
            export.check_unfinished(directory)
    step = int(processes.largest([found.state.step if found else -1])[0])
    if step >= 0 and found is None:
        found = checkpoint.named(checkpoint.directory_of(root, step))
    if found is not None:
        where, model = str(found.directory), directory / export.FINAL
        identity.check(found.identity, config, content, where, model)
        if not found.state.finished:
            console.say(f"resuming from step {found.state.step} ({found.directory})")
    return found


def _work(job: Job, session: Session) -> tuple[engine.Work, dict[str, Any]]:
    processes = session.processes
    train, model = job.config.train, job.model
    if train.gradient_checkpointing:
        # Its old name warns where the new one is there.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if model.config.model_type in dropout.BATCH_DEPENDENT:
        session.console.warn(
            f"what {model.config.model_type} drops depends on the micro-batch size and the number "
            "of processes: keep both for the same numbers, or set its dropout to 0"
        )
    objective = module.quick(job.loss, model, processes.device)
    hidden = int(model.config.hidden_size)
    batch = defaults.global_batch_size(
        train, len(job.examples), job.tokens_per_example, hidden, processes.device.type
    )
    chosen = _choices(job, objective, batch, session)
    settings = defaults.settings(train, job.config.seed, batch, hidden, job.from_scratch, chosen)
    decayed = train.model_copy(update={"weight_decay": settings.weight_decay})
    if chosen["compile"]:
        objective.compile_layers(dynamic=probe.lengths_differ(job.examples))
    limit = defaults.examples_to_see(train, len(job.examples))
    validation = job.validation and subset.drawn(job.validation, chosen["max_eval_samples"])
    work = engine.Work(
        objective=objective,
        optimizer=NamedOptimizer(model, defaults.optimizer(train, job.from_scratch), decayed),
        examples=job.examples,
        rows_of_step=partial(job.rows_of_step, global_batch_size=batch, limit=limit),
        validation=validation,
        validation_loss=job.loss_of_validation(validation),
        settings=settings,
        processes=processes,
    )
    return work, chosen


def _choices(job: Job, objective: module.Objective, batch: int, session: Session) -> dict[str, Any]:
    """What the run goes by besides its config: chosen when it begins, kept when it is resumed, and
    planned anew where it is given another length."""
    train, model = job.config.train, job.model
    if job.resumed is None:
        defaults.check_plan(train, defaults.most_steps(train, len(job.examples), batch))
        chosen = choices.measured(train, objective, job.examples, job.validation, batch, session)
        if chosen["plan"][0][1] == train.max_steps != job.requested.train.max_steps:
            session.console.say(
                "auto: the steps end before the minutes do: "
                "a text that is read more often is learned by heart"
            )
        decay = defaults.weight_decay(train, chosen["epochs"], job.from_scratch)
        return {**chosen, "weight_decay": decay}
    chosen = choices.kept(job.resumed.identity["choices"], train, session)
    if chosen["attention"] != model.config._attn_implementation:
        model.set_attn_implementation(chosen["attention"])
    changed = identity.changed_length(job.resumed.identity, job.requested)
    if not changed:
        return chosen
    chosen = choices.lengthened(
        chosen, train, len(job.examples), batch, job.resumed.state, session.clock
    )
    note = {"step": job.resumed.state.step, "changed": changed}
    return {**chosen, "lengthened": [*chosen.get("lengthened", []), note]}


def _record(
    job: Job,
    work: engine.Work,
    chosen: Mapping[str, Any],
    resolved: Config,
    display: TrainingDisplay,
    clock: Clock,
    state: State,
) -> Record:
    train, batch = job.config.train, work.settings.global_batch_size
    seen = {"global_batch_size": batch, "limit": defaults.examples_to_see(train, len(job.examples))}
    record = Record(
        directory=job.directory,
        settings=work.settings,
        processes=work.processes,
        display=display,
        clock=clock,
        save_model=partial(export.save_model, work.model, job.tokenizer),
        optimizer_tensors=work.optimizer.state,
        identity={
            "requested": identity.keys(job.requested),
            "resolved": identity.keys(resolved),
            "content": dict(job.content),
            "choices": chosen,
        },
        unit=job.unit,
        full_rate=chosen["full_rate"],
        budget=_budget(train, clock, state, chosen),
        most_steps=defaults.most_steps(train, len(job.examples), batch),
        track=work.processes.track if job.config.report_to else None,
        progress=partial(job.progress, **seen) if job.progress else None,
    )
    record.begin(state)
    return record


def _export(job: Job, work: engine.Work, state: State) -> None:
    """Writes `final/`, from the last step or from the best, and draws the curve."""
    step = _final_step(work.settings, state)
    if export.is_written(job.directory, step):
        return
    if step != state.step:
        export.take(work.model, job.directory, step)
    export.write_final(work.model, job.tokenizer, job.directory, step, job.examples)
    unit = "nats per token" if job.unit == "tokens" else f"per {job.unit.removesuffix('s')}"
    title = f"{job.directory.name}: {type(work.model).__name__}"
    plots.loss_curve(job.directory / "metrics.jsonl", job.directory / "loss.png", title, unit)


def _final_step(settings: Settings, state: State) -> int:
    """The step whose weights are the finished model."""
    best = state.best_step if settings.load_best_model_at_end else None
    return state.step if best is None else best


def _state(
    job: Job, work: engine.Work, chosen: Mapping[str, Any], session: Session
) -> tuple[State, bool]:
    """Where the run begins, and whether it was given another length."""
    if job.resumed is None:
        plan = Plan(tuple(Revision(*revision) for revision in chosen["plan"]))
        return State(0, plan, seconds=0.0, evaluated_step=-1 if job.measured_first else 0), False
    work.optimizer.load_state(job.resumed.optimizer_tensors())
    state = job.resumed.state
    changed = identity.changed_length(job.resumed.identity, job.requested)
    if not changed:
        return state, False
    plan = Plan(tuple(Revision(*revision) for revision in chosen["plan"]))
    told = ", ".join(f"{key} was {old}, is now {new}" for key, (old, new) in changed.items())
    session.console.say(
        f"planned anew from step {state.step}: {plan.total_steps} steps in all, "
        f"{state.plan.total_steps} before ({told})"
    )
    return replace(state, plan=plan), True


def _budget(
    train: TrainConfig, clock: Clock, state: State, chosen: Mapping[str, Any]
) -> Budget | None:
    if train.max_minutes is None or train.plan:
        return None
    seconds = 60 * train.max_minutes
    reserve = 0.02 * seconds + 2
    return Budget(clock, seconds, state.step, reserve, chosen["validation_seconds"])


def _warn_of_few_steps(
    job: Job, state: State, first: int, seconds: float, session: Session
) -> None:
    """Warns after a run whose minutes held few steps."""
    train, done = job.config.train, state.step - first
    limited = train.max_minutes is not None and not train.plan
    if limited and done and state.step < min(FEW_STEPS, train.max_steps or FEW_STEPS):
        assert train.max_minutes is not None
        needed = minutes_needed(session.clock.seconds() - seconds, seconds / done)
        session.console.warn(too_few(state.step, train.max_minutes, needed, before=False))


def _resolved(job: Job, work: engine.Work, chosen: Mapping[str, Any]) -> Config:
    """The config with every `auto` of training resolved."""
    names = {"warmup": "warmup_steps"}
    values = {
        names.get(key, key): value for key, value in asdict(work.settings).items() if key != "seed"
    }
    values |= {key: chosen[key] for key in ("precision", "compile")}
    values["optimizer"] = defaults.optimizer(job.config.train, job.from_scratch)
    if work.validation is not None:
        values["max_eval_samples"] = len(work.validation)
    return job.config.model_copy(update={"train": job.config.train.model_copy(update=values)})


def _pinned(resolved: Config, plan: Plan) -> Config:
    """The config that repeats a finished run: its recorded plan takes the place of the clock."""
    train = resolved.train
    values: dict[str, Any] = {"plan": tuple((r.step, r.total_steps) for r in plan.revisions)}
    if train.max_minutes is not None:
        values |= {"max_minutes": None, "max_steps": plan.total_steps}
    return resolved.model_copy(update={"train": train.model_copy(update=values)})


def _write_down(job: Job, resolved: Config, plan: Plan, chosen: Mapping[str, Any]) -> None:
    """Writes `run.json`, and `config.yaml`, which repeats the run in a directory of its own."""
    record = {
        "command": job.command,
        "arguments": sys.argv[1:],
        "content": dict(job.content),
        "settled": sizing.settled(job.config),
        "plan": [[r.step, r.total_steps] for r in plan.revisions],
        "lengthened": chosen.get("lengthened", []),
        "environment": choices.environment(),
    }
    elsewhere = resolved.model_copy(update={"output_dir": None, "resume": "auto"})
    atomic.replace_text(job.directory / "run.json", json.dumps(record, indent=1) + "\n")
    atomic.replace_text(job.directory / "config.yaml", load.as_yaml(elsewhere))
