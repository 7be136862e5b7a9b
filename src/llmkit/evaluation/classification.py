"""How good predicted labels are: each figure by its definition, from counts or from outputs.

Accuracy, F1 and Matthews follow from counts per class alone, so that validation adds them up over
batches and processes; ranks and calibration need the output for every example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.config import jobs

SINGLE, MULTI, REGRESSION = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
"""The kinds of problem, by transformers' names."""

THRESHOLD = 0.5
"""Probability from which a label of a multi-label problem is given."""

BINS = 15
"""Bins of the calibration error (Guo et al. 2017, arXiv 1706.04599)."""

RESAMPLES = 1000
"""Bootstrap samples behind a confidence interval."""

Numbers = NDArray[Any]
Counts = Mapping[str, Numbers]
"""`hits`, `predicted` and `actual` per class, and `exact` rows of `rows` for multi-label; for
regression the sums of `x` (outputs), `y` (labels), their products, and their distances."""


def figures_from(kind: str) -> Callable[[Counts], dict[str, float]]:
    """The function that makes the figures of a kind of problem from its counts."""
    return {SINGLE: single_label, MULTI: multi_label, REGRESSION: regression}[kind]


def names_of_figures(kind: str) -> tuple[str, ...]:
    """The figures that counts of this kind give, beside the loss."""
    return jobs.LABEL_METRICS[kind]


def single_label(counts: Counts) -> dict[str, float]:
    """Accuracy, F1 and Matthews correlation (Gorodkin 2004) of one label per example."""
    hits, predicted, actual = (counts[name] for name in ("hits", "predicted", "actual"))
    rows = float(actual.sum())
    covariance = hits.sum() * rows - predicted @ actual
    spread = (rows**2 - predicted @ predicted) * (rows**2 - actual @ actual)
    return {
        "accuracy": _ratio(hits.sum(), rows),
        **_f1(counts),
        "matthews": _ratio(covariance, np.sqrt(spread)),
    }


def multi_label(counts: Counts) -> dict[str, float]:
    """F1 of all labels, and as accuracy the share of examples with every label right."""
    return {"accuracy": _ratio(counts["exact"], counts["rows"]), **_f1(counts)}


def regression(counts: Counts) -> dict[str, float]:
    """Mean squared and mean absolute error, and Pearson's correlation."""
    rows, x, y = (float(counts[name]) for name in ("rows", "x", "y"))
    covariance = rows * float(counts["xy"]) - x * y
    spread = (rows * float(counts["xx"]) - x * x) * (rows * float(counts["yy"]) - y * y)
    return {
        "mse": _ratio(counts["squared"], rows),
        "mae": _ratio(counts["absolute"], rows),
        "pearson": _ratio(covariance, np.sqrt(max(0.0, spread))),
    }


def per_class(counts: Counts, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support by the name of the class."""
    columns = zip(names, counts["hits"], counts["predicted"], counts["actual"], strict=True)
    return {
        name: {
            "precision": _ratio(hits, predicted),
            "recall": _ratio(hits, actual),
            "f1": _ratio(2 * hits, predicted + actual),
            "support": int(actual),
        }
        for name, hits, predicted, actual in columns
    }


def confusion_matrix(labels: Numbers, predicted: Numbers, n_classes: int) -> Numbers:
    """[actual, predicted] -> number of examples."""
    cells = np.bincount(labels * n_classes + predicted, minlength=n_classes**2)
    return cells.reshape(n_classes, n_classes)


def count_labels(labels: Numbers, predicted: Numbers, n_classes: int) -> dict[str, Numbers]:
    """The counts of single-label predictions [n] against labels [n]."""
    size = {"minlength": n_classes}
    return {
        "hits": np.bincount(labels[labels == predicted], **size),
        "predicted": np.bincount(predicted, **size),
        "actual": np.bincount(labels, **size),
    }


def count_label_sets(labels: Numbers, predicted: Numbers) -> dict[str, Numbers]:
    """The counts of multi-label predictions [n, classes] against labels [n, classes]."""
    labels, predicted = labels.astype(bool), predicted.astype(bool)
    return {
        "hits": (labels & predicted).sum(0),
        "predicted": predicted.sum(0),
        "actual": labels.sum(0),
        "exact": np.asarray((labels == predicted).all(1).sum()),
        "rows": np.asarray(len(labels)),
    }


def roc_auc(scores: Numbers, positive: Numbers) -> float | None:
    """Probability that a positive example scores above a negative one, ties counting half; None
    where there are not both kinds."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return None
    above = average_ranks(scores)[positive.astype(bool)].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * n_negative))


def calibration_error(confidence: Numbers, correct: Numbers) -> float:
    """Expected calibration error over 15 equal-width bins (Guo et al. 2017, eq. 3)."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.bincount(bins, confidence, BINS) - np.bincount(bins, correct, BINS)
    return float(np.abs(gap).sum() / len(confidence))


def spearman(x: Numbers, y: Numbers) -> float:
    """Pearson's correlation of the ranks, equal values sharing theirs."""
    return pearson(average_ranks(x), average_ranks(y))


def pearson(x: Numbers, y: Numbers) -> float:
    """Pearson's correlation; 0 where one of them does not vary."""
    x, y = x - x.mean(), y - y.mean()
    return _ratio(x @ y, np.sqrt((x @ x) * (y @ y)))


def average_ranks(values: Numbers) -> Numbers:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


def interval(
    figures: Callable[[Numbers], Mapping[str, float]], n_rows: int, seed: int
) -> dict[str, tuple[float, float]]:
    """95% bootstrap intervals (Efron 1979, percentiles) of what `figures` makes of row numbers."""
    generator = np.random.default_rng(seed)
    drawn = [figures(generator.integers(n_rows, size=n_rows)) for _ in range(RESAMPLES)]
    return {
        name: tuple(np.percentile([each[name] for each in drawn], (2.5, 97.5)).tolist())
        for name in drawn[0]
    }


def _f1(counts: Counts) -> dict[str, float]:
    """F1 over all decisions, as mean over classes, and as mean weighted by support; classes that
    are neither in the labels nor in the predictions do not count."""
    hits, total = counts["hits"], counts["predicted"] + counts["actual"]
    present = total > 0
    each = 2 * hits[present] / total[present]
    return {
        "f1_macro": float(each.mean()) if len(each) else 0.0,
        "f1_micro": _ratio(2 * hits.sum(), total.sum()),
        "f1_weighted": _ratio(each @ counts["actual"][present], counts["actual"].sum()),
    }


def _ratio(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else 0.0
