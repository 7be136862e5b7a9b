"""What the finished model of a run states about domain experts: its domain, or those it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from llmkit.data.examples import order
from llmkit.data.examples.blocks import Blocks
from llmkit.data.text.token_stream import ShardedIds
from llmkit.errors import ConfigError
from llmkit.models import build
from llmkit.models.experts import record as records
from llmkit.models.experts import twins
from llmkit.models.experts.record import Expert, ExpertsRecord
from llmkit.models.experts.statistics import measure_domain
from llmkit.models.pretrained import Pretrained
from llmkit.training.tasks.task import Batch, Task

SEED = "seed"
"""The description of the model that an expert begins with, in the content of its run."""

STATISTICS_TOKENS = 1 << 17
"""Number of tokens that the statistics for a router are measured on; a regression with a few
hundred inputs needs no more."""
_BATCH_TOKENS = 4096
_COUNTED_AT_ONCE = 1 << 20


def check_seed(seed: Pretrained) -> None:
    """Raises ConfigError for a mixture of experts, with which no expert of a domain can begin."""
    text = seed.config.get_text_config()
    count = max(int(getattr(text, name, None) or 0) for name in build.EXPERTS)
    if count > 1:
        raise ConfigError(
            f"{seed.name} is a mixture of {count} experts; the expert of a domain begins with a "
            "dense model",
            where="model.name_or_path",
            next="name the seed of its experts, or train it on the mixture without --expert",
        )


def record_of(task: Task, text: Blocks | None, model: PreTrainedModel) -> ExpertsRecord | None:
    """The record for the finished model of a run; None if it has nothing to do with experts.

    `text` is what the expert of a domain was trained on; None if the run trains no expert.
    """
    if task.pretrained is None:
        return None
    if text is not None:
        return _branch_record(task, text, model)
    earlier = records.merged_record(task.pretrained)
    if earlier is None:
        return None
    # A merged model was trained on: its experts are no longer the branches.
    experts = [Expert(each.name, "") for each in earlier.experts]
    return replace(earlier, experts=experts, frozen="none", lost="everything")


def _branch_record(task: Task, text: Blocks, model: PreTrainedModel) -> ExpertsRecord:
    """The record of an expert that was trained on a text, whatever its seed is itself."""
    (state,) = twins.dense_states(model)
    statistics = None
    if model.config.model_type in twins.TWINS:
        frequency = token_frequency(text.tokens.ids, int(model.config.vocab_size))
        batches = _batches(text, task.config.seed, model)
        statistics = measure_domain(model, batches, torch.from_numpy(frequency))
    freeze = task.config.train.freeze
    return ExpertsRecord(
        kind="branch",
        experts=[Expert(str(task.config.data.expert), records.state_hash(state), statistics)],
        seed=task.content[SEED],
        tokenizer=records.tokenizer_hash(task.tokenizer),
        frozen="none" if freeze == "body" else freeze,
        dense={k: v for k, v in model.config.to_dict().items() if not k.startswith("_")},
        merge={},
    )


def token_frequency(
    ids: NDArray[Any] | ShardedIds, size: int, at_once: int = _COUNTED_AT_ONCE
) -> NDArray[np.int64]:
    """[size], how often each id occurs, counted in parts: numpy makes a copy of what it counts."""
    found = np.zeros(size, dtype=np.int64)
    for first in range(0, len(ids), at_once):
        found += np.bincount(ids[first : first + at_once], minlength=size)
    return found


def _batches(blocks: Blocks, seed: int, model: PreTrainedModel) -> Iterator[Batch]:
    """Blocks for the statistics: drawn by seed from the whole text."""
    wanted = min(len(blocks), max(1, STATISTICS_TOKENS // blocks.block_size))
    size = max(1, _BATCH_TOKENS // blocks.block_size)
    rows = np.sort(order.rows_of_slots(np.arange(wanted), len(blocks), (seed,)))
    for first in range(0, wanted, size):
        batch = blocks.batch(rows[first : first + size])
        del batch["targets"]
        yield {name: value.to(model.device) for name, value in batch.items()}
