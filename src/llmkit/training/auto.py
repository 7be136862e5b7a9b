"""What `auto` comes to for the settings that follow from the model, the data and the device.

The rules and the measurements behind them: `.github/decisions/0006-auto-settings.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmkit.config.schema import TrainConfig
from llmkit.training.settings import Settings

TOKENS_PER_HIDDEN = {"cpu": 8, "cuda": 128}
"""Tokens per optimizer step for each unit of hidden size: 2048 for 256 wide on a CPU."""

PARTS = 10
"""A run is saved this often, and validated at some or all of these steps."""

VALIDATION_SHARE = 0.1
"""Share of the training time that validation may take, above one validation at the end."""


def optimizer(train: TrainConfig, from_scratch: bool) -> str:
    """Muon for new weights, where it wins clearly; AdamW for weights that AdamW has made."""
    if train.optimizer != "auto":
        return train.optimizer
    return "muon" if from_scratch else "adamw"


def learning_rate(train: TrainConfig, hidden_size: int, from_scratch: bool) -> float:
    """Inverse to the width (Yang et al. 2022, arXiv 2203.03466); low for weights that are good."""
    if train.learning_rate != "auto":
        return train.learning_rate
    if not from_scratch:
        return min(3e-4, 0.04 / hidden_size)
    scale = 0.8 if optimizer(train, from_scratch) == "muon" else 0.4
    return min(6e-3, scale / hidden_size)


def global_batch_size(
    train: TrainConfig, n_examples: int, tokens_per_example: int, hidden_size: int, device: str
) -> int:
    """Sequences per step: enough tokens for the width, never more than there are examples."""
    if train.global_batch_size != "auto":
        return train.global_batch_size
    tokens = TOKENS_PER_HIDDEN.get(device, 8) * hidden_size
    return max(1, min(n_examples, round(tokens / tokens_per_example)))


def examples_to_see(train: TrainConfig, n_examples: int) -> int | None:
    """Examples of a run that is limited by epochs; one epoch when nothing limits it."""
    if train.num_train_epochs is not None:
        return max(1, round(train.num_train_epochs * n_examples))
    if train.max_steps is None and train.max_minutes is None:
        return n_examples
    return None


def most_steps(train: TrainConfig, n_examples: int, batch: int) -> int | None:
    """Steps that `max_steps` and the epochs allow, the fewer; None when only time limits."""
    examples = examples_to_see(train, n_examples)
    limits = [train.max_steps, math.ceil(examples / batch) if examples else None]
    return min((limit for limit in limits if limit is not None), default=None)


def intervals(
    train: TrainConfig, total_steps: int, training_seconds: float, validation_seconds: float
) -> dict[str, int]:
    """Steps between logged lines, checkpoints and validations, from how long each is expected to
    take; every validated step is a saved one, so that the best can be kept."""
    save = max(1, math.ceil(total_steps / PARTS))
    affordable = VALIDATION_SHARE * training_seconds / max(1e-9, validation_seconds)
    every = save * math.ceil(PARTS / max(1, min(PARTS, int(affordable))))
    chosen = {
        "logging_steps": max(1, min(50, total_steps // 50)),
        "save_steps": save,
        "eval_steps": every,
    }
    return {key: chosen[key] if (own := getattr(train, key)) == "auto" else own for key in chosen}


def settings(
    train: TrainConfig,
    seed: int,
    batch: int,
    hidden_size: int,
    from_scratch: bool,
    choices: Mapping[str, Any],
) -> Settings:
    """All that the engine needs; `choices` is what was measured when the run began."""
    warmup = 0.03 if train.warmup_steps == "auto" else train.warmup_steps
    total_steps = choices["plan"][0][1]
    return Settings(
        seed=seed,
        global_batch_size=batch,
        micro_batch_size=choices["micro_batch_size"],
        learning_rate=learning_rate(train, hidden_size, from_scratch),
        lr_scheduler_type="linear"
        if train.lr_scheduler_type == "auto"
        else train.lr_scheduler_type,
        warmup=warmup if warmup < 1 else min(1.0, warmup / max(1, total_steps)),
        max_grad_norm=train.max_grad_norm,
        max_nonfinite_steps=train.max_nonfinite_steps,
        logging_steps=choices["logging_steps"],
        eval_steps=choices["eval_steps"],
        save_steps=choices["save_steps"],
        save_total_limit=train.save_total_limit,
    )
