"""What a classifier or tagger gets wrong: the confusion matrix, or the pairs of classes that are
confused most, and single rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from llmkit.reporting.evaluation_summary import confused_names, confused_unit
from llmkit.reporting.plots import MAX_PAIRS, WITH_CELLS
from llmkit.reporting.run_record import RunRecord

_Counts = Sequence[Sequence[int]]


def confusions(run: RunRecord) -> Iterator[dict[str, Any]]:
    """The confusion matrix of each split: its cells with their share of the actual class, or for
    many classes the most confused pairs."""
    for split, found in run.evaluation.items():
        counts: _Counts = found.get("confusion_matrix") or []
        if not counts:
            continue
        names = confused_names(found) or [str(n) for n in range(len(counts))]
        rows = sum(map(sum, counts))
        right = sum(counts[n][n] for n in range(len(counts)))
        # The matrix of a tagger has the types of entities; their boundaries may be wrong as well.
        right = found.get("errors", {}).get("exact", right)
        yield {
            "split": f"{split} data",
            "unit": confused_unit(found),
            "rows": rows,
            "right": right,
            "names": names,
            "cells": _cells(counts, names) if len(names) <= WITH_CELLS else [],
            "pairs": _most_confused(counts, names) if len(names) > WITH_CELLS else [],
            "wrong": rows - right,
        }


def worst_mistakes(run: RunRecord) -> list[dict[str, Any]]:
    """The wrong predictions with the highest loss, with the name of the file of each row."""
    found: Sequence[Mapping[str, Any]] = run.evaluation.get("validation", {}).get("worst") or []
    return [{**each, "file": PurePath(str(each.get("file", ""))).name} for each in found]


def _cells(counts: _Counts, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "total": sum(row),
            "cells": [
                {"count": count, "share": count / max(1, sum(row)), "right": number == column}
                for column, count in enumerate(row)
            ],
        }
        for number, (name, row) in enumerate(zip(names, counts, strict=True))
    ]


def _most_confused(counts: _Counts, names: Sequence[str]) -> list[dict[str, Any]]:
    pairs: list[dict[str, Any]] = [
        {
            "count": count,
            "share": count / sum(row),
            "actual": names[number],
            "predicted": names[column],
        }
        for number, row in enumerate(counts)
        for column, count in enumerate(row)
        if number != column and count
    ]
    return sorted(pairs, key=lambda pair: (-pair["count"], -pair["share"]))[:MAX_PAIRS]
