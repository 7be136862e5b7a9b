"""The loss of classifiers: for one label, several labels, or a number per text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from llmkit.data.records.labels import MULTI, SINGLE
from llmkit.training.tasks.task import (
    IGNORED,
    Batch,
    Examples,
    LabelledExamples,
    Loss,
    Rows,
    Sums,
    summed_cross_entropy,
)

_Parts = tuple[dict[str, Tensor], Callable[[], dict[str, Tensor]]]
"""Objective, loss, and a function that makes the counts for validation."""


@dataclass(frozen=True)
class ClassificationLoss(Loss):
    """The loss for one label, several labels, or a number per text.

    The reported loss is plain, in nats or squared units, so that runs are comparable; class weights
    and label smoothing affect only the objective. With several labels, the loss of a text is the
    mean over them.
    """

    kind: str
    """transformers' `problem_type`."""
    n_classes: int
    figures_of: Callable[[Sums], dict[str, float]]
    """Computes the metrics from the counts; see `llmkit.evaluation.labels.label_metrics`."""
    class_weights: NDArray[np.float32] | None = None
    """[classes]; with several labels, the weight of each label that a text has."""
    label_smoothing: float = 0.0
    unit: float = 1.0
    """The unit of a regression's errors in training."""

    def weight(self, examples: Examples, rows: Rows) -> float:
        """The sum of the class weights of the examples, like torch's weighted mean."""
        if self.class_weights is None or self.kind != SINGLE:
            return examples.count(rows)
        labels = cast(LabelledExamples, examples).labels(rows)
        return float(self.class_weights[labels].sum(dtype=np.float64))

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Objective and loss, and in validation the counts for `figures_of`."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**inputs).logits.float()  # [batch, classes]
        kinds = {SINGLE: self._single_label, MULTI: self._multi_label}
        each = kinds.get(self.kind, self._regression)
        sums, counts = each(logits, batch["labels"])
        return sums if model.training else {**sums, **counts()}

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """The mean loss per example, and the metrics of the counts."""
        loss = float(sums["loss"]) / max(1, predictions)
        return {"loss": loss, **self.figures_of(sums)}

    def _single_label(self, logits: Tensor, labels: Tensor) -> _Parts:
        sums = class_sums(logits, labels, self.class_weights, self.label_smoothing)

        def counts() -> dict[str, Tensor]:
            scored = (labels != IGNORED)[:, None]
            actual = functional.one_hot(labels.clamp(min=0), self.n_classes) * scored
            predicted = functional.one_hot(logits.argmax(1), self.n_classes) * scored
            return _counted(actual, predicted)

        return sums, counts

    def _multi_label(self, logits: Tensor, labels: Tensor) -> _Parts:
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

    def _regression(self, outputs: Tensor, labels: Tensor) -> _Parts:
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


def class_sums(
    logits: Tensor, labels: Tensor, weights: NDArray[np.float32] | None, smoothing: float
) -> dict[str, Tensor]:
    """The plain cross entropy of one class each, and the objective with class weights and label
    smoothing, summed over the labels that are not IGNORED."""
    loss = objective = summed_cross_entropy(logits, labels)
    if weights is not None or smoothing:
        objective = summed_cross_entropy(logits, labels, _like(weights, logits), smoothing)
    return {"objective": objective, "loss": loss}


def balanced_weights(kind: str, targets: NDArray[Any], n_classes: int) -> NDArray[np.float32]:
    """Weights that balance classes: examples / (classes x examples of the class); with several
    labels, examples without the label / examples with it."""
    if kind == MULTI:
        having = targets.sum(0)
        weights = (len(targets) - having) / np.maximum(1, having)
    else:
        counts = np.bincount(targets, minlength=n_classes)
        weights = len(targets) / (n_classes * np.maximum(1, counts))
    return np.asarray(weights, dtype=np.float32)


def _counted(actual: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    actual, predicted = actual.bool(), predicted.bool()
    return {
        "hits": (actual & predicted).sum(0),
        "predicted": predicted.sum(0),
        "actual": actual.sum(0),
    }


def _like(weights: NDArray[np.float32] | None, logits: Tensor) -> Tensor | None:
    return None if weights is None else torch.from_numpy(weights).to(logits.device)
