"""Recognises the files of results that `predict` and `evaluate` have written, by how they begin."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

EVALUATION = "llmkit evaluate"
"""Names the generator of the pages that `evaluate` writes."""

_EVALUATION = re.compile(
    rf'\{{\s*"command": "evaluate"|command: evaluate\n|<!doctype html>.*content="{EVALUATION}"',
    re.IGNORECASE | re.DOTALL,
)
_LINE = 1 << 20  # bytes of a first line that show what wrote a file
_PAGE = 4096


def holds_predictions(path: Path) -> bool:
    """Whether a file was written by `predict`; raises OSError where it cannot be read."""
    with path.open("rb") as file:
        first = file.readline(_LINE).decode("utf-8", "replace")
    return _is_prediction(first) if first.startswith("{") else _has_predictions(first)


def holds_evaluation(path: Path) -> bool:
    """Whether a file was written by `evaluate`; raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return bool(_EVALUATION.match(file.read(_PAGE).decode("utf-8", "replace")))


def _is_prediction(line: str) -> bool:
    """Whether a line of JSON is the prediction for a row."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return value.keys() >= {"text", "label", "probabilities"} and isinstance(
        value["probabilities"], dict
    )


def _has_predictions(header: str) -> bool:
    """Whether the first row of a table names the columns that `predict` adds, as its last ones."""
    if ",label,probability_" not in header:
        return False
    names = next(csv.reader([header]), [])
    after = names[names.index("label") + 1 :] if "label" in names else []
    return bool(after) and all(name.startswith("probability_") for name in after)
