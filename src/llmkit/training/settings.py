"""The settings of a run with nothing left open: what `auto` came to, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What the engine needs to know; names and units are those of `train.*` in the config."""

    seed: int
    global_batch_size: int
    micro_batch_size: int
    learning_rate: float
    lr_scheduler_type: str
    warmup: float
    """Share of the run in which the learning rate rises."""
    weight_decay: float
    max_grad_norm: float | None
    max_nonfinite_steps: int
    logging_steps: int
    eval_steps: int
    save_steps: int
    save_total_limit: int
    metric_for_best_model: str = "loss"
    load_best_model_at_end: bool = False
    early_stopping_patience: int | None = None
    loss_spike: str = "warn"
