"""What every task has in common: batches, sets of examples, and a loss.

A loss gives sums, never means: a mean of means is wrong as soon as batches differ in size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from llmkit.models.moe import Balance

Batch = dict[str, Tensor]
"""Tensors that a model takes, its targets, where few places are predicted their numbers, and for
rows of tokens with padding `real`, a bool that is False there."""
Rows = Sequence[int] | NDArray[np.int64]
Sums = Mapping[str, NDArray[np.float64]]
"""What a loss's sums come to over a whole set and all processes."""

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


class LabelledExamples(Examples, Protocol):
    """Examples with a class each."""

    targets: NDArray[Any]


class Loss(ABC):
    """What is minimised, and the figures that people read."""

    balance: Balance | None = None
    """The load-balancing loss of a mixture of experts."""
    compilable: tuple[nn.Module, ...] = ()
    """Modules of the loss itself that are worth compiling."""

    def weight(self, examples: Examples, rows: Rows) -> float:
        """What the objective summed over these rows is divided by: each prediction weighs 1."""
        return examples.count(rows)

    @abstractmethod
    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`objective` to minimise and `loss` to report, each summed over the batch's predictions,
        and whatever else `figures` needs, of any shape."""

    @abstractmethod
    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """The figures of a whole set from its sums."""

    def routed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The tokens routed to each expert, where there is a `balance`."""
        raise NotImplementedError


def summed_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Cross entropy in nats, summed over the labels that are not IGNORED."""
    return functional.cross_entropy(
        logits,
        labels,
        weight=weights,
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=smoothing,
    )


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the model is."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
