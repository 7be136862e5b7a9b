"""The config of a run with nothing of the training left open."""

from __future__ import annotations

from typing import Literal

from llmkit.config.schema import Config, TrainConfig


class ResolvedTrain(TrainConfig):
    """How the weights are trained: each `auto` is a value. Tasks leave `auto` where a key does not
    apply to them."""

    global_batch_size: int
    micro_batch_size: int
    learning_rate: float
    lr_scheduler_type: Literal["constant", "linear", "cosine", "warmup_stable_decay"]
    warmup_steps: float
    """Share of the run in which the learning rate rises."""
    weight_decay: float
    adam_beta2: float
    logging_steps: int
    eval_steps: int
    save_steps: int
    metric_for_best_model: str = "loss"
    load_best_model_at_end: bool = False


class Resolved(Config):
    """A config as a run follows and records it."""

    train: ResolvedTrain
