"""What the finished model of a run states about domain experts: its domain, or those it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from llmkit.data.examples import order
from llmkit.data.examples.blocks import Blocks
from llmkit.models import directory as directories
from llmkit.models.experts import record as records
from llmkit.models.experts import twins
from llmkit.models.experts.record import Expert, ExpertsRecord
from llmkit.models.experts.statistics import measure_domain
from llmkit.training.tasks.task import Batch, Task

STATISTICS_TOKENS = 1 << 17
"""Number of tokens that the statistics for a router are measured on; a regression with a few
hundred inputs needs no more."""
_BATCH_TOKENS = 4096


def record_of(task: Task, text: Blocks | None, model: PreTrainedModel) -> ExpertsRecord | None:
    """The record for the finished model of a run; None if it has nothing to do with experts.

    `text` is what the expert of a domain was trained on; None if the run trains no expert.
    """
    if task.pretrained is None:
        return None
    earlier = records.read_experts(Path(task.pretrained.location))
    if earlier is not None:  # a merged model is trained on: its experts are no longer the branches
        experts = [Expert(each.name, "") for each in earlier.experts]
        return replace(earlier, experts=experts, frozen="none", merge={**earlier.merge, "mixed": 1})
    if text is None:
        return None
    (state,) = twins.dense_states(model)
    statistics = None
    if model.config.model_type in twins.TWINS:
        frequency = np.bincount(text.tokens.ids, minlength=model.config.vocab_size)
        statistics = measure_domain(
            model, _batches(text, task.config.seed, model), torch.from_numpy(frequency)
        )
    freeze = task.config.train.freeze
    return ExpertsRecord(
        kind="branch",
        experts=[Expert(str(task.config.data.expert), records.state_hash(state), statistics)],
        seed=directories.content_identity(task.pretrained.location, task.pretrained.revision),
        tokenizer=records.tokenizer_hash(task.tokenizer),
        frozen="none" if freeze == "body" else freeze,
        dense=model.config.to_dict(),
        merge={},
    )


def _batches(blocks: Blocks, seed: int, model: PreTrainedModel) -> Iterator[Batch]:
    """Blocks for the statistics: drawn by seed from the whole text."""
    wanted = min(len(blocks), max(1, STATISTICS_TOKENS // blocks.block_size))
    size = max(1, _BATCH_TOKENS // blocks.block_size)
    rows = np.sort(order.rows_of_slots(np.arange(wanted), len(blocks), (seed,)))
    for first in range(0, wanted, size):
        batch = blocks.batch(rows[first : first + size])
        del batch["targets"]
        yield {name: value.to(model.device) for name, value in batch.items()}
