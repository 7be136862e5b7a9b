"""Rows of any number through a classifier: in their order, and a window of them at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from llmkit.data.labelled import Row
from llmkit.errors import DataError
from llmkit.evaluation import scoring
from llmkit.evaluation.classification import MULTI, REGRESSION, THRESHOLD, Numbers
from llmkit.evaluation.prediction import Classifier
from llmkit.models.classifier import Head
from llmkit.reporting.predictions import DIGITS, Prediction

WINDOW_ROWS, WINDOW_CHARACTERS = 8192, 8 << 20
"""Rows that are sorted by length together: as many, or as long in all."""

ALL = "*"


def label(
    classifier: Classifier, rows: Iterable[Row], columns: Sequence[str]
) -> Iterator[list[Prediction]]:
    """Predictions for the rows in their order, a window at a time; `columns` are repeated.

    Raises DataError for columns that a row does not have.
    """
    for window in windows(rows):
        outputs = classifier.outputs([row.texts for row in window])
        probabilities = scoring.probabilities(classifier.head.problem_type, outputs)
        yield [
            predict(classifier.head, row, values, columns)
            for row, values in zip(window, probabilities, strict=True)
        ]


def predict(head: Head, row: Row, values: Numbers, columns: Sequence[str]) -> Prediction:
    """What the head's values for a row say."""
    rounded = [round(value, DIGITS) for value in values.tolist()]
    repeated = _repeated(row, columns)
    if head.problem_type == REGRESSION:
        return Prediction(row.texts, rounded[0], {}, repeated)
    probabilities = dict(zip(head.names, rounded, strict=True))
    if head.problem_type == MULTI:
        given = [name for name, value in zip(head.names, values, strict=True) if value >= THRESHOLD]
        return Prediction(row.texts, given, probabilities, repeated)
    return Prediction(row.texts, head.names[int(np.argmax(values))], probabilities, repeated)


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
