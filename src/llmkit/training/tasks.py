"""What the engine must know of an objective: its summed loss, and the figures that people read.

Sums, never means: a mean of means is wrong as soon as batches differ in size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from llmkit.models import rope
from llmkit.models.kernels.cross_entropy import LinearCrossEntropy
from llmkit.models.moe import Balance

Batch = dict[str, Tensor]
"""Tensors that a model takes, its targets, where few places are predicted their numbers, and for
rows of tokens with padding `real`, a bool that is False there."""
Rows = Sequence[int] | NDArray[np.int64]
Sums = Mapping[str, NDArray[np.float64]]
"""What a task's sums come to over a whole set and all processes."""

IGNORED = -100
"""Target of a position that is not predicted."""

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
"""The problem types of transformers that have classes."""

Parts = tuple[dict[str, Tensor], Callable[[], dict[str, Tensor]]]


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

    def __init__(
        self, n_bytes: int, linear_head: bool = False, balance: Balance | None = None
    ) -> None:
        """`n_bytes` of text stand behind a validation set; `linear_head` says that the logits are
        a matrix times the last hidden states, as `llmkit.models.logits` finds out; `balance` is the
        load-balancing loss of a mixture of experts."""
        self.n_bytes, self.linear_head, self.balance = n_bytes, linear_head, balance
        self.cross_entropy = LinearCrossEntropy(IGNORED)

    def weight(self, examples: Examples, rows: Rows) -> float:
        """Every token weighs the same."""
        return examples.count(rows)

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy in nats, and for a mixture of experts what its load-balancing loss needs,
        see `Balance.sums`."""
        whole = model.base_model if self.linear_head else model
        outputs: Any = self._outputs(model, whole, batch)
        if self.linear_head:
            loss = self._chunked(model, outputs.last_hidden_state.flatten(0, 1), batch)
        else:
            logits = outputs.logits.flatten(0, 1)  # [batch * block, vocabulary]
            loss = _cross_entropy(logits.float(), batch["targets"].flatten())
        sums = {"objective": loss, "loss": loss}
        if self.balance is not None:
            sums |= self.balance.sums(outputs.router_logits, batch.get("real"))
        return sums

    def routed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The tokens routed to each expert, see `Balance.sums`, without the cost of logits."""
        assert self.balance is not None
        outputs: Any = self._outputs(model, model.base_model, batch)
        return self.balance.sums(outputs.router_logits, batch.get("real"))["routed"]

    def _outputs(self, model: Any, part: Any, batch: Batch) -> Any:
        inputs = {key: value for key, value in batch.items() if key not in ("targets", "places")}
        inputs = rope.placed(model, inputs)
        options = {} if self.balance is None else {"output_router_logits": True}
        # Without use_cache=False, transformers silently ignores position_ids that start again.
        return part(**inputs, use_cache=False, **options)

    def _chunked(self, model: Any, hidden: Tensor, batch: Batch) -> Tensor:
        targets = batch["targets"].flatten()  # [batch * block]
        if "places" in batch:  # other places are not predicted, and cost no product
            hidden, targets = hidden.index_select(0, batch["places"]), targets[batch["places"]]
        loss: Tensor = self.cross_entropy(hidden, model.get_output_embeddings().weight, targets)
        return loss

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """Loss in nats per token, perplexity, bits per byte of the text, and of experts
        the load-balancing loss, which is part of none of the others."""
        loss = float(sums["loss"]) / max(1, predictions)
        found = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": float(sums["loss"]) / math.log(2) / max(1, self.n_bytes),
        }
        if self.balance is not None and "routed" in sums:
            routed, probability = (torch.from_numpy(sums[name]) for name in Balance.SUMS)
            found["router_aux_loss"] = float(self.balance.loss(routed, probability))
        return found


class Completion(CausalLanguageModeling):
    """The responses to prompts: each of their tokens from those before it in its conversation."""

    def __init__(self, linear_head: bool = False, balance: Balance | None = None) -> None:
        super().__init__(n_bytes=0, linear_head=linear_head, balance=balance)

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """The same for the responses, without bits per byte."""
        found = super().figures(sums, predictions)
        return {name: value for name, value in found.items() if name != "bits_per_byte"}


@dataclass(frozen=True)
class Classification:
    """One label, several labels, or a number for each text.

    The loss that is reported is plain, in nats or squared units, so that runs compare; weights of
    classes and smoothed labels are in the objective alone. Of several labels each text's loss is
    the mean over them.
    """

    kind: str
    """transformers' `problem_type`."""
    n_classes: int
    figures_of: Callable[[Sums], dict[str, float]]
    """Makes the figures from the counts; see `llmkit.evaluation.classification`."""
    class_weights: NDArray[np.float32] | None = None
    """[classes]; of several labels, the weight of each where a text has it."""
    label_smoothing: float = 0.0
    unit: float = 1.0
    """What the errors of a regression are measured in while it learns."""

    def weight(self, examples: Examples, rows: Rows) -> float:
        """Examples, each weighing what its class weighs, as torch's weighted mean has it."""
        if self.class_weights is None or self.kind != SINGLE:
            return examples.count(rows)
        chosen = np.asarray(rows)
        labels = cast(LabelledExamples, examples).targets[chosen[chosen >= 0]]
        return float(self.class_weights[labels].sum(dtype=np.float64))

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Objective and loss, and for validation the counts that `figures_of` takes."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**inputs).logits.float()  # [batch, classes]
        kinds = {SINGLE: self._single_label, MULTI: self._multi_label}
        each = kinds.get(self.kind, self._regression)
        sums, counts = each(logits, batch["labels"])
        return sums if model.training else {**sums, **counts()}

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """The mean loss of an example, and the figures of the counts."""
        loss = float(sums["loss"]) / max(1, predictions)
        return {"loss": loss, **self.figures_of(sums)}

    def _single_label(self, logits: Tensor, labels: Tensor) -> Parts:
        loss = _cross_entropy(logits, labels)
        objective = loss
        if self.class_weights is not None or self.label_smoothing:
            weights = _like(self.class_weights, logits)
            objective = _cross_entropy(logits, labels, weights, self.label_smoothing)

        def counts() -> dict[str, Tensor]:
            scored = (labels != IGNORED)[:, None]
            actual = functional.one_hot(labels.clamp(min=0), self.n_classes) * scored
            predicted = functional.one_hot(logits.argmax(1), self.n_classes) * scored
            return _counted(actual, predicted)

        return {"objective": objective, "loss": loss}, counts

    def _multi_label(self, logits: Tensor, labels: Tensor) -> Parts:
        scored = ~labels[:, :1].isnan()  # [batch, 1]
        actual = torch.where(scored, labels, 0.0)
        smoothed = actual * (1 - self.label_smoothing) + self.label_smoothing / 2

        def entropy(targets: Tensor, weights: Tensor | None) -> Tensor:
            each = functional.binary_cross_entropy_with_logits(
                logits, targets, pos_weight=weights, reduction="none"
            )
            return (each.mean(1, keepdim=True) * scored).sum()

        def counts() -> dict[str, Tensor]:
            predicted = (logits >= 0) & scored
            exact = ((predicted == actual.bool()).all(1, keepdim=True) & scored).sum()
            return {**_counted(actual, predicted), "exact": exact, "rows": scored.sum()}

        loss, weights = entropy(actual, None), _like(self.class_weights, logits)
        changed = weights is not None or self.label_smoothing
        objective = entropy(smoothed, weights) if changed else loss
        return {"objective": objective, "loss": loss}, counts

    def _regression(self, outputs: Tensor, labels: Tensor) -> Parts:
        scored = ~labels.isnan()
        x, y = outputs[:, 0] * scored, torch.where(scored, labels, 0.0)
        distance = x - y
        loss = (distance**2).sum()

        def counts() -> dict[str, Tensor]:
            a, b = x.double(), y.double()
            return {
                "rows": scored.sum(), "x": a.sum(), "y": b.sum(),
                "xx": (a * a).sum(), "yy": (b * b).sum(), "xy": (a * b).sum(),
                "squared": (distance.double() ** 2).sum(), "absolute": distance.abs().sum(),
            }  # fmt: skip

        return {"objective": loss / self.unit**2, "loss": loss}, counts


def balanced_weights(kind: str, targets: NDArray[Any], n_classes: int) -> NDArray[np.float32]:
    """Weights that make classes count alike: examples / (classes x examples of the class); of
    several labels, examples without the label / examples with it."""
    if kind == MULTI:
        having = targets.sum(0)
        weights = (len(targets) - having) / np.maximum(1, having)
    else:
        counts = np.bincount(targets, minlength=n_classes)
        weights = len(targets) / (n_classes * np.maximum(1, counts))
    return np.asarray(weights, dtype=np.float32)


def _cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    return functional.cross_entropy(
        logits,
        labels,
        weight=weights,
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=smoothing,
    )


def _counted(actual: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    actual, predicted = actual.bool(), predicted.bool()
    return {
        "hits": (actual & predicted).sum(0),
        "predicted": predicted.sum(0),
        "actual": actual.sum(0),
    }


def _like(weights: NDArray[np.float32] | None, logits: Tensor) -> Tensor | None:
    return None if weights is None else torch.from_numpy(weights).to(logits.device)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the model is."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
