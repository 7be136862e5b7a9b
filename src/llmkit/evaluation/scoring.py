"""All that is said of a classifier on labelled examples, from its outputs for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmkit.evaluation import classification as metrics
from llmkit.evaluation.classification import MULTI, SINGLE, THRESHOLD, Numbers


def score(
    kind: str, outputs: Numbers, labels: Numbers, names: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Every figure of a kind of problem, with 95% bootstrap intervals of the main ones.

    `outputs` are a model's logits [n, classes], or [n] numbers of a regression; `labels` [n] or,
    for multi-label, [n, classes].
    """
    scored = {SINGLE: _single_label, MULTI: _multi_label}.get(kind, _regression)
    found = scored(outputs.astype(np.float64), labels, names, seed)
    return {"examples": len(labels), **{k: v for k, v in found.items() if v is not None}}


def probabilities(kind: str, outputs: Numbers) -> Numbers:
    """What logits [n, classes] say of each label: softmax, or for multi-label a sigmoid each; the
    numbers of a regression stay as they are. In float64."""
    outputs = outputs.astype(np.float64)
    if kind == SINGLE:
        return np.exp(_log_softmax(outputs))
    # The same as 1 / (1 + exp(-x)), which overflows.
    return (1 + np.tanh(outputs / 2)) / 2 if kind == MULTI else outputs


def _single_label(
    logits: Numbers, labels: Numbers, names: Sequence[str], seed: int
) -> dict[str, Any]:
    n_classes = len(names)
    log_probability = _log_softmax(logits)
    predicted = logits.argmax(1)
    confidence = np.exp(log_probability.max(1))
    counts = metrics.count_labels(labels, predicted, n_classes)

    def main_figures(rows: Numbers) -> dict[str, float]:
        found = metrics.single_label(metrics.count_labels(labels[rows], predicted[rows], n_classes))
        return {name: found[name] for name in ("accuracy", "f1_macro")}

    return {
        "loss": float(-log_probability[np.arange(len(labels)), labels].mean()),
        **metrics.single_label(counts),
        "roc_auc": _mean_auc(np.exp(log_probability), _one_hot(labels, n_classes), n_classes == 2),
        "calibration_error": metrics.calibration_error(confidence, predicted == labels),
        "intervals": metrics.interval(main_figures, len(labels), seed),
        "per_class": metrics.per_class(counts, names),
        "confusion_matrix": metrics.confusion_matrix(labels, predicted, n_classes).tolist(),
    }


def _multi_label(
    logits: Numbers, labels: Numbers, names: Sequence[str], seed: int
) -> dict[str, Any]:
    # log(1 + exp(x)) - xy is the cross entropy of a sigmoid, without its overflow.
    loss = np.logaddexp(0, logits) - logits * labels
    probability = probabilities(MULTI, logits)
    predicted = probability >= THRESHOLD
    counts = metrics.count_label_sets(labels, predicted)

    def main_figures(rows: Numbers) -> dict[str, float]:
        found = metrics.multi_label(metrics.count_label_sets(labels[rows], predicted[rows]))
        return {name: found[name] for name in ("accuracy", "f1_macro", "f1_micro")}

    return {
        "loss": float(loss.mean()),
        **metrics.multi_label(counts),
        "threshold": THRESHOLD,
        "roc_auc": _mean_auc(probability, labels, False),
        "intervals": metrics.interval(main_figures, len(labels), seed),
        "per_class": metrics.per_class(counts, names),
    }


def _regression(
    outputs: Numbers, labels: Numbers, _names: Sequence[str], seed: int
) -> dict[str, Any]:
    x, y = outputs.reshape(-1), labels.astype(np.float64)

    def main_figures(rows: Numbers) -> dict[str, float]:
        distance = x[rows] - y[rows]
        return {
            "mse": float((distance**2).mean()),
            "mae": float(np.abs(distance).mean()),
            "pearson": metrics.pearson(x[rows], y[rows]),
        }

    found = main_figures(np.arange(len(y)))
    return {
        "loss": found["mse"],
        **found,
        "spearman": metrics.spearman(x, y),
        "intervals": metrics.interval(main_figures, len(y), seed),
    }


def _mean_auc(scores: Numbers, positive: Numbers, is_binary: bool) -> float | None:
    """The area under the curve of the second of two classes, else the mean of each class against
    the rest; None where a class has no example, or all."""
    classes = [1] if is_binary else range(positive.shape[1])
    areas = [metrics.roc_auc(scores[:, c], positive[:, c]) for c in classes]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if len(known) == len(areas) else None


def _one_hot(labels: Numbers, n_classes: int) -> Numbers:
    marks: Numbers = labels[:, None] == np.arange(n_classes)
    return marks


def _log_softmax(logits: Numbers) -> Numbers:
    shifted = logits - logits.max(1, keepdims=True)
    normalised: Numbers = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return normalised
