"""What `auto` comes to for the settings that follow from the model, the data and the device.

The rules and the measurements behind them: `.github/decisions/0006-auto-settings.md`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmkit.config.schema import TrainConfig
from llmkit.errors import ConfigError
from llmkit.training.schedule import VALIDATION_SHARE

TOKENS_PER_HIDDEN = {"cpu": 8, "cuda": 128}
"""Tokens per optimizer step for each unit of hidden size, in a run by minutes: 2048 for 256 wide on
a CPU."""

FEWEST_PER_HIDDEN, MOST_PER_HIDDEN, USUAL_STEPS = 8, 32, 2000
"""Without minutes the text decides: a pass over it has about so many steps, of at least and at most
so many tokens for each unit of hidden size."""

PARTS = 10
"""A run is saved this often, and validated at some or all of these steps."""

VALIDATION_COST = 0.5
"""What validating an example takes of what training on it takes: a third of the operations, in
fp32."""

LOOK_COST = 1.0
"""Steps of training that the samples after a validation take, whatever the length of the run."""

MOST_LOST = 120.0
"""Seconds of training that may lie between checkpoints where validations are rare."""

MOST_EPOCHS, _LEAST_STEPS = 4, 700
"""Passes over the text that minutes are spent on, and steps that they are spent on in any case."""

CLASSIFIER_EPOCHS, CLASSIFIER_BATCH = 3.0, 32

NEW_HEAD_SCALE = 5.0
"""A new head learns this much faster than the body that it is put on."""

STEPS_OF_EPOCH = 20
"""Steps that an epoch has at least, where there are so many packs."""


def pretraining(train: TrainConfig) -> TrainConfig:
    """The settings with what `auto` is for a language model, whatever its size."""
    return train.filled(
        adam_beta2=0.95,
        metric_for_best_model="loss",
    )


def finetuning(
    train: TrainConfig, n_examples: int, hidden_size: int, trained: str, metric: str
) -> TrainConfig:
    """The settings with what `auto` is for a classifier.

    `trained` is what of the model learns: `all` (under a new head), `again` (all, with the head
    that it has), `new` (all, from random weights), `lora` or `head`. Devlin et al. 2019 for all but
    the learning rate, which is larger for small models, and for new heads.
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
    """The settings with what `auto` is for a causal model that learns responses: those of a
    classifier, with enough tokens for the width in a step, and STEPS_OF_EPOCH steps of a small
    data set."""
    if train.global_batch_size == "auto":
        usual = global_batch_size(train, n_packs, tokens_per_pack, hidden_size, device)
        batch = max(1, min(usual, n_packs // STEPS_OF_EPOCH))
        train = train.changed(global_batch_size=batch)
    return finetuning(train, n_packs, hidden_size, "lora" if lora else "again", "loss")


def check_best(train: TrainConfig, figures: Sequence[str], validated: bool) -> None:
    """Raises ConfigError where the best model could not be told: its figure is none of those that
    validation gives, or there is no validation."""
    if train.metric_for_best_model not in figures:
        raise ConfigError(
            f"validation gives no {train.metric_for_best_model!r}",
            where="train.metric_for_best_model",
            next=f"write one of {', '.join(figures)}",
        )
    if train.early_stopping_patience is not None and not validated:
        raise ConfigError(
            "early stopping needs validation data",
            where="train.early_stopping_patience",
            next="give data.validation_files, or leave out data.validation_fraction=0",
        )


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


def weight_decay(train: TrainConfig, epochs: float, from_scratch: bool) -> float:
    """More, the more often new weights see the same text: it is what keeps them from learning it by
    heart (Kim et al. 2025, arXiv 2509.14786)."""
    if train.weight_decay != "auto":
        return train.weight_decay
    return min(2.0, max(0.1, 0.5 * epochs)) if from_scratch else 0.1


def bounded(train: TrainConfig, n_examples: int, batch: int) -> TrainConfig:
    """The settings of a new causal model with the most steps that its minutes may hold, where they
    alone limit the run: after four epochs a text is learned by heart (Muennighoff et al. 2023,
    arXiv 2305.16264), and a schedule that is still high then ends with a worse model.
    """
    alone = train.max_minutes is not None and train.max_steps is None
    if not alone or train.num_train_epochs is not None:
        return train
    steps = math.ceil(MOST_EPOCHS * n_examples / batch)
    return train.changed(max_steps=max(steps, _LEAST_STEPS))


def global_batch_size(
    train: TrainConfig, n_examples: int, tokens_per_example: int, hidden_size: int, device: str
) -> int:
    """Sequences per step: enough tokens for the width, never more than there are examples. The
    `device` counts in a run by minutes alone."""
    if train.global_batch_size != "auto":
        return train.global_batch_size
    if train.max_minutes is not None:
        tokens: float = TOKENS_PER_HIDDEN.get(device, FEWEST_PER_HIDDEN) * hidden_size
    else:
        usual = n_examples * tokens_per_example / USUAL_STEPS
        tokens = min(max(usual, FEWEST_PER_HIDDEN * hidden_size), MOST_PER_HIDDEN * hidden_size)
    return max(1, min(n_examples, round(tokens / tokens_per_example)))


def examples_to_see(train: TrainConfig, n_examples: int) -> int | None:
    """Examples of a run that is limited by epochs; one epoch when nothing limits it."""
    if train.num_train_epochs is not None:
        return max(1, round(train.num_train_epochs * n_examples))
    if train.max_steps is None and train.max_minutes is None:
        return n_examples
    return None


def check_plan(train: TrainConfig, most: int | None = None) -> None:
    """Raises ConfigError where a recorded plan contradicts the length that the run is given."""
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
            f"train.plan records a run of {totals[-1]} steps, and {wrong} would be another length",
            where="train.plan",
            next="add train.plan=[] to plan the run anew, or leave the length as it was recorded",
        )


def most_steps(train: TrainConfig, n_examples: int, batch: int) -> int | None:
    """Steps that `max_steps` and the epochs allow, the fewer; None when only time limits."""
    examples = examples_to_see(train, n_examples)
    limits = [train.max_steps, math.ceil(examples / batch) if examples else None]
    return min((limit for limit in limits if limit is not None), default=None)


def validation_share(n_validation: int, n_trained: int, steps: int) -> float:
    """What one validation with its samples takes of the whole training, told by the numbers of
    examples and steps."""
    return VALIDATION_COST * n_validation / max(1, n_trained) + LOOK_COST / max(1, steps)


def intervals(
    train: TrainConfig, total_steps: int, validation_share: float, seconds: float
) -> dict[str, int]:
    """Steps between logged lines, checkpoints and validations. One validation takes
    `validation_share` of the training; every validated step is a saved one, so that the best can be
    kept. Training takes about so many `seconds`, by which checkpoints alone go."""
    save = max(1, math.ceil(total_steps / PARTS))
    own = train.eval_steps
    if own != "auto" and own > save and seconds * own <= MOST_LOST * total_steps:
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
