"""The one place where what is left open in a config becomes a value, when a run begins."""

from __future__ import annotations

from typing import Any

from llmkit.config.resolved import Resolved, ResolvedTrain
from llmkit.training.choices import Choices
from llmkit.training.schedule import Plan
from llmkit.training.tasks import defaults
from llmkit.training.tasks.task import Examples, Task


def resolve(
    task: Task, hidden_size: int, batch: int, chosen: Choices, validation: Examples | None
) -> Resolved:
    """The config of a run with a model of so many hidden units, which validates on these
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
    """The config that repeats a finished run: its recorded plan takes the place of the clock."""
    values: dict[str, Any] = {"plan": tuple((r.step, r.total_steps) for r in plan.revisions)}
    if resolved.train.max_minutes is not None:
        values |= {"max_minutes": None, "max_steps": plan.total_steps}
    return resolved.changed(train=values)
