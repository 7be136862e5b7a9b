"""Metrics of predicted labels, each by its definition, from counts or from outputs.

Accuracy, F1 and the Matthews correlation need only counts per class, which validation sums over
batches and processes; rank metrics and calibration need the output for every example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from llmkit import bootstrap
from llmkit.data.records.labels import MULTI, REGRESSION, SINGLE
from llmkit.inference.labels.classify import THRESHOLD, AnyArray, probabilities

BINS = 15
"""Bins of the calibration error (Guo et al. 2017, arXiv 1706.04599)."""

LabelCounts = Mapping[str, AnyArray]
"""`hits`, `predicted` and `actual` per class; for multi-label also `exact` matches and `rows`; for
regression the sums of `x` (outputs), `y` (labels), their products, and their distances."""


def score_labels(
    kind: str, outputs: AnyArray, labels: AnyArray, names: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Every metric of a problem type, with 95% bootstrap intervals of the main ones.

    `outputs` are logits [n, classes], or [n] numbers for regression; `labels` are [n], or
    [n, classes] for multi-label.
    """
    scored = {SINGLE: _single_label, MULTI: _multi_label}.get(kind, _regression)
    found = scored(outputs.astype(np.float64), labels, names, seed)
    return {"examples": len(labels), **{k: v for k, v in found.items() if v is not None}}


def figures_from(kind: str) -> Callable[[LabelCounts], dict[str, float]]:
    """The function that computes the metrics of a problem type from its counts."""
    return {SINGLE: single_label, MULTI: multi_label, REGRESSION: regression}[kind]


def single_label(counts: LabelCounts) -> dict[str, float]:
    """Accuracy, F1 and Matthews correlation (Gorodkin 2004), for one label per example."""
    hits, predicted, actual = (counts[name] for name in ("hits", "predicted", "actual"))
    rows = float(actual.sum())
    covariance = hits.sum() * rows - predicted @ actual
    spread = (rows**2 - predicted @ predicted) * (rows**2 - actual @ actual)
    return {
        "accuracy": _ratio(hits.sum(), rows),
        **_f1(counts),
        "matthews": _ratio(covariance, np.sqrt(spread)),
    }


def multi_label(counts: LabelCounts) -> dict[str, float]:
    """F1 over all labels; accuracy is the share of examples whose label sets match exactly."""
    return {"accuracy": _ratio(counts["exact"], counts["rows"]), **_f1(counts)}


def regression(counts: LabelCounts) -> dict[str, float]:
    """Mean squared error, mean absolute error, and Pearson's correlation."""
    rows, x, y = (float(counts[name]) for name in ("rows", "x", "y"))
    covariance = rows * float(counts["xy"]) - x * y
    spread = (rows * float(counts["xx"]) - x * x) * (rows * float(counts["yy"]) - y * y)
    return {
        "mse": _ratio(counts["squared"], rows),
        "mae": _ratio(counts["absolute"], rows),
        "pearson": _ratio(covariance, np.sqrt(max(0.0, spread))),
    }


def per_class(counts: LabelCounts, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of each class, by its name."""
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


def count_confusions(labels: AnyArray, predicted: AnyArray, n_classes: int) -> AnyArray:
    """The confusion matrix [actual, predicted] of numbers of examples."""
    from sklearn import metrics

    matrix: AnyArray = metrics.confusion_matrix(labels, predicted, labels=range(n_classes))
    return matrix


def count_labels(labels: AnyArray, predicted: AnyArray, n_classes: int) -> dict[str, AnyArray]:
    """The counts of single-label predictions [n] against labels [n]."""
    size = {"minlength": n_classes}
    return {
        "hits": np.bincount(labels[labels == predicted], **size),
        "predicted": np.bincount(predicted, **size),
        "actual": np.bincount(labels, **size),
    }


def count_label_sets(labels: AnyArray, predicted: AnyArray) -> dict[str, AnyArray]:
    """The counts of multi-label predictions [n, classes] against labels [n, classes]."""
    labels, predicted = labels.astype(bool), predicted.astype(bool)
    return {
        "hits": (labels & predicted).sum(0),
        "predicted": predicted.sum(0),
        "actual": labels.sum(0),
        "exact": np.asarray((labels == predicted).all(1).sum()),
        "rows": np.asarray(len(labels)),
    }


def roc_auc(scores: AnyArray, positive: AnyArray) -> float | None:
    """Probability that a positive example scores above a negative one, ties counting half; None
    unless there are examples of both."""
    from sklearn import metrics

    has_both = 0 < int(positive.sum()) < len(positive)
    return float(metrics.roc_auc_score(positive, scores)) if has_both else None


def calibration_error(confidence: AnyArray, correct: AnyArray) -> float:
    """Expected calibration error over 15 equal-width bins (Guo et al. 2017, eq. 3)."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.bincount(bins, confidence, BINS) - np.bincount(bins, correct, BINS)
    return float(np.abs(gap).sum() / len(confidence))


def spearman(x: AnyArray, y: AnyArray) -> float:
    """Pearson's correlation of the ranks; ties share their mean rank."""
    from scipy import stats

    return pearson(stats.rankdata(x), stats.rankdata(y))


def pearson(x: AnyArray, y: AnyArray) -> float:
    """Pearson's correlation; 0 if either is constant, where scipy gives NaN."""
    x, y = x - x.mean(), y - y.mean()
    return _ratio(x @ y, np.sqrt((x @ x) * (y @ y)))


def _f1(counts: LabelCounts) -> dict[str, float]:
    """F1 over all decisions (micro), averaged over classes (macro), and weighted by support;
    classes that occur neither in the labels nor in the predictions are ignored."""
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


def _single_label(
    logits: AnyArray, labels: AnyArray, names: Sequence[str], seed: int
) -> dict[str, Any]:
    n_classes = len(names)
    log_probability = special.log_softmax(logits, axis=1)
    predicted = logits.argmax(1)
    confidence = np.exp(log_probability.max(1))
    counts = count_labels(labels, predicted, n_classes)

    def main_figures(rows: AnyArray) -> dict[str, float]:
        found = single_label(count_labels(labels[rows], predicted[rows], n_classes))
        return {name: found[name] for name in ("accuracy", "f1_macro")}

    return {
        "loss": float(-log_probability[np.arange(len(labels)), labels].mean()),
        **single_label(counts),
        "roc_auc": _mean_auc(np.exp(log_probability), _one_hot(labels, n_classes), n_classes == 2),
        "calibration_error": calibration_error(confidence, predicted == labels),
        "intervals": bootstrap.figure_intervals(main_figures, len(labels), seed),
        "per_class": per_class(counts, names),
        "confusion_matrix": count_confusions(labels, predicted, n_classes).tolist(),
    }


def _multi_label(
    logits: AnyArray, labels: AnyArray, names: Sequence[str], seed: int
) -> dict[str, Any]:
    # log(1 + exp(x)) - xy is the cross entropy of a sigmoid; logaddexp does not overflow.
    loss = np.logaddexp(0, logits) - logits * labels
    probability = probabilities(MULTI, logits)
    predicted = probability >= THRESHOLD
    counts = count_label_sets(labels, predicted)

    def main_figures(rows: AnyArray) -> dict[str, float]:
        found = multi_label(count_label_sets(labels[rows], predicted[rows]))
        return {name: found[name] for name in ("accuracy", "f1_macro", "f1_micro")}

    return {
        "loss": float(loss.mean()),
        **multi_label(counts),
        "threshold": THRESHOLD,
        "roc_auc": _mean_auc(probability, labels, False),
        "intervals": bootstrap.figure_intervals(main_figures, len(labels), seed),
        "per_class": per_class(counts, names),
    }


def _regression(
    outputs: AnyArray, labels: AnyArray, _names: Sequence[str], seed: int
) -> dict[str, Any]:
    x, y = outputs.reshape(-1), labels.astype(np.float64)

    def main_figures(rows: AnyArray) -> dict[str, float]:
        distance = x[rows] - y[rows]
        return {
            "mse": float((distance**2).mean()),
            "mae": float(np.abs(distance).mean()),
            "pearson": pearson(x[rows], y[rows]),
        }

    found = main_figures(np.arange(len(y)))
    return {
        "loss": found["mse"],
        **found,
        "spearman": spearman(x, y),
        "intervals": bootstrap.figure_intervals(main_figures, len(y), seed),
    }


def _mean_auc(scores: AnyArray, positive: AnyArray, is_binary: bool) -> float | None:
    """The area under the ROC curve of the second of two classes, else the one-vs-rest mean over
    classes; None if a class has no example, or all of them."""
    classes = [1] if is_binary else range(positive.shape[1])
    areas = [roc_auc(scores[:, c], positive[:, c]) for c in classes]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if len(known) == len(areas) else None


def _one_hot(labels: AnyArray, n_classes: int) -> AnyArray:
    marks: AnyArray = labels[:, None] == np.arange(n_classes)
    return marks
