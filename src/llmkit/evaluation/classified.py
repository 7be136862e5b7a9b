"""A classifier and its baselines on one table of labelled rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llmkit.data.examples import Table
from llmkit.evaluation import baselines, scoring
from llmkit.evaluation.baselines import Baseline
from llmkit.evaluation.classification import REGRESSION, Numbers
from llmkit.evaluation.prediction import Classifier
from llmkit.progress import Watch

BULKY = ("per_class", "confusion_matrix")
"""What a table for people has no room for."""


def measure(
    classifier: Classifier,
    table: Table,
    fitted: Mapping[str, Baseline],
    seed: int,
    watch: Watch,
) -> dict[str, Any]:
    """Every figure of the classifier on the table, and under `baseline` those of the baselines."""
    kind, names = table.labels.kind, table.labels.names
    with watch("measuring", len(table)) as advance:
        outputs = classifier.outputs(table.texts, advance)
    targets = encoded_targets(table)
    figures = scoring.score(kind, outputs, targets, names, seed)
    texts = joined_texts(table)
    beside = baselines.score(dict(fitted), kind, len(names), texts, targets)
    return {**figures, "baseline": beside}


def fit_baselines(table: Table, say: Callable[[str], None]) -> dict[str, Baseline]:
    """The baselines, fitted to a training table."""
    say(f"fitting the baselines to {len(table):,} rows: majority, and TF-IDF with regression")
    return baselines.fit(table.labels.kind, joined_texts(table), encoded_targets(table))


def encoded_targets(table: Table) -> Numbers:
    """The labels as metrics and baselines take them."""
    if table.labels.kind == REGRESSION:
        return table.targets.astype(np.float64)
    return table.targets.astype(np.int64)


def joined_texts(table: Table) -> list[str]:
    """Each row as one text: of a pair, the two in a line each."""
    return ["\n".join(texts) for texts in table.texts]


def summary(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures without those for each class."""
    return {name: value for name, value in figures.items() if name not in BULKY}
