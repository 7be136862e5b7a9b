"""What the engine must know of an objective: its summed loss, and the figures that people read.

Sums, never means: a mean of means is wrong as soon as batches differ in size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Batch = dict[str, Tensor]
Rows = Sequence[int] | NDArray[np.int64]
Sums = Mapping[str, NDArray[np.float64]]
"""What a task's sums come to over a whole set and all processes."""

IGNORED = -100
"""Target of a position that is not predicted."""


class Examples(Protocol):
    """A set of training or validation examples, in memory or mapped from a file."""

    def __len__(self) -> int:
        """Number of examples."""

    def batch(self, rows: Rows) -> Batch:
        """The examples of these rows as tensors; row -1 is one in which nothing is predicted."""

    def count(self, rows: Rows) -> int:
        """Predictions in these rows."""

    def longest_first(self) -> Rows:
        """All rows, such that neighbours need little padding and the first the most memory."""


class Task(Protocol):
    """An objective."""

    def weight(self, examples: Examples, rows: Rows) -> float:
        """What the objective summed over these rows is divided by."""

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`objective` to minimise and `loss` to report, each summed over the batch's predictions,
        and whatever else `figures` needs, of any shape."""

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """The figures of a whole set from its sums."""


class CausalLanguageModeling:
    """Each token from those before it, in its own document."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes

    def weight(self, examples: Examples, rows: Rows) -> float:
        """Every token weighs the same."""
        return examples.count(rows)

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy in nats; a mixture of experts adds its load-balancing loss (Fedus et al.
        2021, arXiv 2101.03961) to the objective."""
        inputs = {key: batch[key] for key in ("input_ids", "position_ids") if key in batch}
        config: Any = model.config
        routed = getattr(config, "router_aux_loss_coef", None) is not None
        options = {"output_router_logits": True} if routed else {}
        # Without use_cache=False, transformers silently ignores position_ids that start again.
        outputs = model(**inputs, use_cache=False, **options)
        logits = outputs.logits.flatten(0, 1)  # [batch * block, vocabulary]
        targets = batch["targets"].flatten()  # [batch * block]
        loss = functional.cross_entropy(
            logits.float(), targets, ignore_index=IGNORED, reduction="sum"
        )
        objective = loss
        if routed:
            predictions = (targets != IGNORED).sum()
            objective = loss + config.router_aux_loss_coef * outputs.aux_loss * predictions
        return {"objective": objective, "loss": loss}

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """Loss in nats per token, perplexity, and bits per byte of the text."""
        loss = float(sums["loss"]) / max(1, predictions)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": float(sums["loss"]) / math.log(2) / max(1, self.n_bytes),
        }


class Objective(nn.Module):
    """A task and a model as one module, so that compiling and distributing take in the loss."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The task's sums over the batch."""
        return self.task.sums(self.model, batch)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the model is."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
