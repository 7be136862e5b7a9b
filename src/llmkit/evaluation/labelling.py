"""Rows of any number through a classifier: in their order, and a window of them at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from llmkit.data.labelled import Row
from llmkit.distributed.processes import Processes
from llmkit.errors import DataError
from llmkit.evaluation import prediction, scoring
from llmkit.evaluation.classification import MULTI, REGRESSION, THRESHOLD, Numbers
from llmkit.evaluation.prediction import Classifier
from llmkit.models.classifier import Head
from llmkit.reporting.predictions import DIGITS, Prediction

WINDOW_ROWS, WINDOW_CHARACTERS = 8192, 8 << 20
"""Rows that are sorted by length together: as many, or as long in all."""

ALL = "*"


def label(
    classifier: Classifier,
    windows: Iterable[Sequence[Row]],
    columns: Sequence[str],
    processes: Processes | None = None,
) -> Iterator[list[Prediction]]:
    """Predictions for the rows in their order, a window at a time; `columns` are repeated.

    Several processes share each window, and each gets all predictions. Raises DataError for columns
    that a row does not have.
    """
    for window in windows:
        outputs = prediction.shared(classifier, [row.texts for row in window], processes)
        probabilities = scoring.probabilities(classifier.head.problem_type, outputs)
        yield [
            predict(classifier.head, row, values, columns)
            for row, values in zip(window, probabilities, strict=True)
        ]


def predict(head: Head, row: Row, values: Numbers, columns: Sequence[str]) -> Prediction:
    """What the head's values for a row say."""
    rounded = [round(value, DIGITS) for value in values.tolist()]
    repeated = _repeated(row, columns)
    kept = {**row.named, **repeated}
    given = (repeated, {name: kept[name] for name in row.order if name in kept})
    if head.problem_type == REGRESSION:
        return Prediction(row.texts, rounded[0], {}, *given)
    probabilities = dict(zip(head.names, rounded, strict=True))
    if head.problem_type == MULTI:
        likely = zip(head.names, values, strict=True)
        label = [name for name, value in likely if value >= THRESHOLD]
        return Prediction(row.texts, label, probabilities, *given)
    return Prediction(row.texts, head.names[int(np.argmax(values))], probabilities, *given)


def windows(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in windows of bounded size, so that any number of them takes bounded memory."""
    window: list[Row] = []
    characters = 0
    for row in rows:
        window.append(row)
        characters += sum(map(len, row.texts)) + len(str(row.extra))
        if len(window) == WINDOW_ROWS or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def after(windows: Iterable[list[Row]], rows: int) -> Iterator[list[Row]]:
    """What follows so many rows, in windows."""
    for window in windows:
        if kept := window[rows:]:
            yield kept
        rows = max(0, rows - len(window))


def check_first(rows: Iterator[Row], columns: Sequence[str]) -> Iterator[Row]:
    """The same rows, after a look at the first: whether it can be read, and has the columns."""
    first = next(rows, None)
    if first is None:
        return iter(())
    _repeated(first, columns)
    return chain([first], rows)


def _repeated(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    if ALL in columns:
        return row.extra
    for name in columns:
        if name not in row.extra:
            raise DataError(
                f"there is no column {name!r} besides the text",
                where=f"predict.columns; {row.path} row {row.number}",
                next=f"write some of {', '.join(row.extra) or 'none: there is no other column'}",
            )
    return {name: row.extra[name] for name in columns}
