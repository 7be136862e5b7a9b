"""Tensor parallelism: each process holds a slice of every matrix, according to the plan that
transformers has for the architecture. All processes must compute the same batches."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig
from transformers.distributed import DistributedConfig

from llmkit.errors import ConfigError

_HEADS = ("num_attention_heads", "num_key_value_heads")
"""Settings that must be divisible by the number of processes, because heads are not split."""


def check_divisible(config: PretrainedConfig, name: str, count: int) -> None:
    """Raises ConfigError for a model that transformers cannot divide among so many processes."""
    text = config.get_text_config()
    if not text.base_model_tp_plan:
        raise ConfigError(
            f"{name} is a {config.model_type} model, for which transformers has no tensor-parallel "
            "plan",
            where="model.tp_plan",
            next="remove this key: each process then holds the whole model and does its share of "
            "the work",
        )
    heads = {key: getattr(text, key, None) or count for key in _HEADS}
    if all(number % count == 0 for number in heads.values()):
        return
    counts = (n for n in range(1, count) if all(number % n == 0 for number in heads.values()))
    given = ", ".join(f"{key}={number}" for key, number in heads.items())
    raise ConfigError(
        f"the heads of {name} ({given}) do not divide among {count} processes",
        where="model.tp_plan",
        next=f"launch {' or '.join(map(str, counts))}",
    )


def loading_options(count: int) -> dict[str, Any]:
    """Options of `from_pretrained` that load this process's slice of each matrix."""
    return {"distributed_config": DistributedConfig(tp_size=count)}
