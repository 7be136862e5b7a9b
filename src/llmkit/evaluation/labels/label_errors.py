"""Rows whose label is probably wrong, by confident learning on the probabilities of a model that
has not seen them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import DataError


def confident_labels(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> NDArray[np.int64]:
    """[rows], the class that a row is confidently in, or -1 (Northcutt et al. 2021).

    A row may be in every class whose probability is at least the mean of that class over the rows
    with its label; it is in the most probable of them. `labels` is [rows], `probabilities` is
    [rows, classes].
    """
    classes = np.arange(probabilities.shape[1])
    has_label = labels[:, None] == classes
    counts = has_label.sum(axis=0)
    sums = np.where(has_label, probabilities, 0.0).sum(axis=0)
    thresholds = np.where(counts > 0, sums / np.maximum(1, counts), np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.where(confident.max(axis=1) >= 0, confident.argmax(axis=1), -1)


def suspected_rows(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are confidently in another class than that of their label, the surest first.

    `samples` are scored rows with `label` and `probabilities`. Raises DataError if they do not have
    one label each.
    """
    if not samples:
        return []
    if not all(isinstance(row["label"], str) and "probabilities" in row for row in samples):
        raise DataError(
            "suspected label errors need rows with one label each",
            where="evaluation.label_errors",
            next="remove it, or evaluate a classifier with a single label",
        )
    names = list(samples[0]["probabilities"])
    labels = np.array([names.index(row["label"]) for row in samples])
    probabilities = np.array([list(row["probabilities"].values()) for row in samples])
    likely = confident_labels(labels, probabilities)
    suspected = np.flatnonzero((likely >= 0) & (likely != labels))
    margins = probabilities[suspected, likely[suspected]]
    margins = margins - probabilities[suspected, labels[suspected]]
    return [
        {
            "file": samples[row]["file"],
            "row": samples[row]["row"],
            "label": samples[row]["label"],
            "suggested": names[likely[row]],
            "probability_of_label": round(float(probabilities[row, labels[row]]), 6),
            "probability_of_suggested": round(float(probabilities[row, likely[row]]), 6),
            "text": samples[row]["text"],
        }
        for row in suspected[np.argsort(-margins, kind="stable")].tolist()
    ]
