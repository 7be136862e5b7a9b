"""Resolve `auto` for settings that depend on the model, the data and the device.

The rules and the measurements behind them: `.github/decisions/0006-auto-settings.md`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmkit.config.schema import TrainConfig
from llmkit.errors import ConfigError
from llmkit.training.schedule import VALIDATION_SHARE

TOKENS_PER_HIDDEN = {"cpu": 8, "cuda": 128}
"""Tokens per optimizer step and unit of hidden size in a run with a time limit: 2048 for a hidden
size of 256 on a CPU."""

FEWEST_PER_HIDDEN, MAX_PER_HIDDEN, USUAL_STEPS = 8, 32, 2000
"""Without a time limit the text decides: an epoch has about this many steps, with this minimum and
maximum of tokens per unit of hidden size."""

PARTS = 10
"""Number of saves of a run; some or all of these steps are validated."""

VALIDATION_COST = 0.5
"""Cost of validating an example relative to training on it: a third of the operations, in fp32."""

LOOK_COST = 1.0
"""Cost of the samples after a validation, in training steps."""

MAX_LOST_SECONDS = 120.0
"""Maximum seconds of training between checkpoints if validations are rare."""

MAX_EPOCHS, _LEAST_STEPS = 4, 700
"""Maximum number of epochs in a time limit, and the number of steps that is always allowed."""

CLASSIFIER_EPOCHS, CLASSIFIER_BATCH = 3.0, 32

NEW_HEAD_SCALE = 5.0
"""Ratio of the learning rates of a new head and its pretrained body."""

STEPS_OF_EPOCH = 20
"""Minimum number of steps of an epoch, if there are enough packs."""


def pretraining(train: TrainConfig) -> TrainConfig:
    """The settings of a language model with every size-independent `auto` resolved."""
    return train.filled(
        adam_beta2=0.95,
        metric_for_best_model="loss",
    )


def finetuning(
    train: TrainConfig, n_examples: int, hidden_size: int, trained: str, metric: str
) -> TrainConfig:
    """The settings of a classifier with every `auto` resolved.

    `trained` is the part of the model that is trained: `all` (with a new head), `again` (all, with
    its existing head), `new` (all, from random weights), `lora` or `head`. The values are from
    Devlin et al. 2019, except the learning rate, which is higher for small models and new heads.
    """
    usual = min(2e-4, max(2e-5, 2e-4 * 384 / hidden_size))
    special = {"new": min(1e-3, 0.2 / hidden_size), "lora": 5 * usual, "head": 3e-3}
    endless = train.max_steps is None and train.max_minutes is None
    usual_batch = min(CLASSIFIER_BATCH, n_examples)
    batch = usual_batch if train.global_batch_size == "auto" else train.global_batch_size
    filled = train.filled(
        optimizer="adamw",
        learning_rate=special.get(trained, usual),
        head_scale=NEW_HEAD_SCALE if trained == "all" else 1.0,
        global_batch_size=batch,
        warmup_steps=0.06,
        weight_decay=0.01,
        adam_beta2=0.999,
        eval_steps=math.ceil(n_examples / batch),
        metric_for_best_model=metric,
        load_best_model_at_end=True,
    )
    if endless and train.num_train_epochs is None:
        return filled.changed(num_train_epochs=CLASSIFIER_EPOCHS)
    return filled


def completing(
    train: TrainConfig,
    n_packs: int,
    tokens_per_pack: int,
    hidden_size: int,
    lora: bool,
    device: str,
) -> TrainConfig:
    """The settings of a model that learns responses with every `auto` resolved: those of a
    classifier, with enough tokens per step for the hidden size, and STEPS_OF_EPOCH steps per epoch
    for a small data set."""
    if train.global_batch_size == "auto":
        usual = global_batch_size(train, n_packs, tokens_per_pack, hidden_size, device)
        batch = max(1, min(usual, n_packs // STEPS_OF_EPOCH))
        train = train.changed(global_batch_size=batch)
    return finetuning(train, n_packs, hidden_size, "lora" if lora else "again", "loss")


PREFERENCE_RATE = 0.1
"""Learning rate of preferences relative to that of responses: they overfit sooner."""


def preferring(train: TrainConfig, n_pairs: int, hidden_size: int, lora: bool) -> TrainConfig:
    """The settings of a model that learns preferences with every `auto` resolved: those of a
    classifier, with a lower learning rate."""
    filled = finetuning(train, n_pairs, hidden_size, "lora" if lora else "again", "loss")
    if train.learning_rate == "auto":
        assert filled.learning_rate != "auto"
        return filled.changed(learning_rate=PREFERENCE_RATE * filled.learning_rate)
    return filled


def check_best(train: TrainConfig, figures: Sequence[str], validated: bool) -> None:
    """Raises ConfigError if `metric_for_best_model` is not a validation metric, or if early
    stopping is set without validation data."""
    if train.metric_for_best_model not in figures:
        raise ConfigError(
            f"validation has no metric {train.metric_for_best_model!r}",
            where="train.metric_for_best_model",
            next=f"choose one of {', '.join(figures)}",
        )
    if train.early_stopping_patience is not None and not validated:
        raise ConfigError(
            "early stopping needs validation data",
            where="train.early_stopping_patience",
            next="give data.validation_files, or remove data.validation_fraction=0",
        )


def optimizer(train: TrainConfig, from_scratch: bool) -> str:
    """Muon for new weights, where it is clearly better; AdamW for pretrained weights."""
    if train.optimizer != "auto":
        return train.optimizer
    return "muon" if from_scratch else "adamw"


def learning_rate(train: TrainConfig, hidden_size: int, from_scratch: bool) -> float:
    """Inverse to the hidden size (Yang et al. 2022, arXiv 2203.03466); low for pretrained
    weights."""
    if train.learning_rate != "auto":
        return train.learning_rate
    if not from_scratch:
        return min(3e-4, 0.04 / hidden_size)
    scale = 0.8 if optimizer(train, from_scratch) == "muon" else 0.4
    return min(6e-3, scale / hidden_size)


def weight_decay(train: TrainConfig, epochs: float, from_scratch: bool) -> float:
    """Increases with the number of epochs of new weights, to prevent overfitting (Kim et al. 2025,
    arXiv 2509.14786)."""
    if train.weight_decay != "auto":
        return train.weight_decay
    return min(2.0, max(0.1, 0.5 * epochs)) if from_scratch else 0.1


def bounded(train: TrainConfig, n_examples: int, batch: int) -> TrainConfig:
    """Limit the steps of a new causal model whose only limit is time.

    After four epochs a model overfits (Muennighoff et al. 2023, arXiv 2305.16264), and a learning
    rate that is still high then gives a worse model.
    """
    alone = train.max_minutes is not None and train.max_steps is None
    if not alone or train.num_train_epochs is not None:
        return train
    steps = math.ceil(MAX_EPOCHS * n_examples / batch)
    return train.changed(max_steps=max(steps, _LEAST_STEPS))


def global_batch_size(
    train: TrainConfig, n_examples: int, tokens_per_example: int, hidden_size: int, device: str
) -> int:
    """Sequences per step: enough tokens for the hidden size, at most the number of examples. The
    `device` matters only in a run with a time limit."""
    if train.global_batch_size != "auto":
        return train.global_batch_size
    if train.max_minutes is not None:
        tokens: float = TOKENS_PER_HIDDEN.get(device, FEWEST_PER_HIDDEN) * hidden_size
    else:
        usual = n_examples * tokens_per_example / USUAL_STEPS
        tokens = min(max(usual, FEWEST_PER_HIDDEN * hidden_size), MAX_PER_HIDDEN * hidden_size)
    return max(1, min(n_examples, round(tokens / tokens_per_example)))


def examples_to_see(train: TrainConfig, n_examples: int) -> int | None:
    """Number of examples of a run limited by epochs; one epoch if there is no limit."""
    if train.num_train_epochs is not None:
        return max(1, round(train.num_train_epochs * n_examples))
    if train.max_steps is None and train.max_minutes is None:
        return n_examples
    return None


def check_plan(train: TrainConfig, most: int | None = None) -> None:
    """Raises ConfigError if a recorded plan contradicts the length in the config."""
    if not train.plan:
        return
    totals = [total for _, total in train.plan]
    wrong = None
    if train.max_minutes is not None:
        wrong = f"train.max_minutes={train.max_minutes:g}"
    elif (steps := train.max_steps if most is None else most) not in (None, *totals):
        wrong = f"{'train.max_steps=' if most is None else ''}{steps}"
    if wrong:
        raise ConfigError(
            f"train.plan records a run of {totals[-1]} steps, but {wrong} gives another length",
            where="train.plan",
            next="add train.plan=[] to plan the run again, or keep the recorded length",
        )


def most_steps(train: TrainConfig, n_examples: int, batch: int) -> int | None:
    """The lower of the limits by `max_steps` and by epochs; None if only time is limited."""
    examples = examples_to_see(train, n_examples)
    limits = [train.max_steps, math.ceil(examples / batch) if examples else None]
    return min((limit for limit in limits if limit is not None), default=None)


def validation_share(n_validation: int, n_trained: int, steps: int) -> float:
    """Cost of one validation with its samples as a share of the training, estimated from the
    numbers of examples and steps."""
    return VALIDATION_COST * n_validation / max(1, n_trained) + LOOK_COST / max(1, steps)


def intervals(
    train: TrainConfig, total_steps: int, validation_share: float, seconds: float
) -> dict[str, int]:
    """Steps between log lines, checkpoints and validations.

    One validation takes `validation_share` of the training; every validated step is saved, so that
    the best can be kept. Training takes about `seconds`, which only affects checkpoints.
    """
    save = max(1, math.ceil(total_steps / PARTS))
    own = train.eval_steps
    if own != "auto" and own > save and seconds * own <= MAX_LOST_SECONDS * total_steps:
        save = own
    affordable = VALIDATION_SHARE / max(1e-9, validation_share)
    every = save * math.ceil(PARTS / max(1, min(PARTS, int(affordable))))
    chosen = {
        "logging_steps": max(1, min(50, total_steps // 50)),
        "save_steps": save,
        "eval_steps": every,
    }
    return {
        key: chosen[key] if getattr(train, key) == "auto" else getattr(train, key) for key in chosen
    }
