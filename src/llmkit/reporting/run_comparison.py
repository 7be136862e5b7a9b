"""Several runs side by side: keys that differ, figures, and whether they can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from llmkit.errors import UsageError
from llmkit.reporting import plots
from llmkit.reporting.run_record import RunRecord

HEADLINES = ("bits_per_byte", "perplexity", "accuracy", "f1_macro", "mae", "pearson", "loss")
"""Figures that runs are compared by, where they have them."""


def compare_runs(runs: Sequence[RunRecord], anchors: Sequence[str]) -> dict[str, Any]:
    """The table of the keys that differ and the figures, and the curves in one picture."""
    keys = differing_keys(runs)
    figures = [key for key in HEADLINES if any(key in run.validation for run in runs)]
    rows = []
    for run, anchor in zip(runs, anchors, strict=True):
        values = dict(dotted_values(run.config))
        cells = [
            {"text": figure_text(values.get(key, "")), "value": values.get(key, "")} for key in keys
        ]
        for key in figures:
            value = run.validation.get(key)
            bounds = interval_of(run.validation, key)
            text = "" if value is None else figure_text(value)
            cells.append(
                {
                    "text": text,
                    "value": value,
                    "numeric": True,
                    "interval": bounds and f"({bounds})",
                }
            )
        given = [values.get(key, "") for key in keys]
        cells += [{"text": figure_text(value), "value": value} for value in given]
        rows.append({"anchor": anchor, "name": run.name, "cells": cells})
    names = [key.replace("_", " ") for key in figures]
    drawn = {run.name: run.metrics for run in runs}
    return {
        "sentence": _best(runs, figures),
        "warnings": list(_unlike(runs)),
        "caption": "Keys that differ, and figures on the validation data with 95% intervals. "
        "A heading sorts the table.",
        "columns": ["run", *names, *(key.rpartition(".")[2] for key in keys)],
        "numeric": names,
        "rows": rows,
        "curves": plots.as_svg(plots.draw_curves(drawn)),
        "curves_text": "Validation loss of each run by optimizer step.",
    }


def _best(runs: Sequence[RunRecord], figures: Sequence[str]) -> str:
    if not figures:
        return "None of these runs has validation figures."
    key = figures[0]
    lower = key in ("loss", "perplexity", "bits_per_byte", "mae", "rmse")
    measured = [run for run in runs if run.validation.get(key) is not None]
    ranked = sorted(measured, key=lambda run: run.validation[key], reverse=not lower)
    name = key.replace("_", " ")
    first = ranked[0]
    text = f"{first.name} has the best {name}: {figure_text(first.validation[key])}"
    if len(ranked) > 1:
        second = ranked[1]
        text += f"; next is {second.name} with {figure_text(second.validation[key])}"
        bounds = [run.validation.get("intervals", {}).get(key) for run in ranked[:2]]
        if all(bounds) and _overlap(*bounds):
            text += ". Their intervals overlap: the difference may be chance"
    return f"{text}."


def _overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    return first[0] <= second[1] and second[0] <= first[1]


def check_comparable(runs: Sequence[RunRecord]) -> None:
    """Raises UsageError for runs that have no figure in common."""
    for first, second in pairwise(runs):
        common = set(first.validation) & set(second.validation) & set(HEADLINES)
        if first.validation and second.validation and common <= {"loss"}:
            raise UsageError(
                f"{first.name} and {second.name} cannot be compared: one is measured by "
                f"{_headline(first)}, the other by {_headline(second)}",
                where=f"{first.directory}, {second.directory}",
                next="report runs of one task together",
            )


def _headline(run: RunRecord) -> str:
    """The name of the first figure that a run is compared by."""
    return next((key for key in HEADLINES if key in run.validation), "nothing").replace("_", " ")


def _unlike(runs: Sequence[RunRecord]) -> Iterator[str]:
    """What makes the figures of some runs hard to compare: other validation data."""
    for first, second in pairwise(runs):
        content = [
            (run.facts.get("content") or {}).get("validation data") for run in (first, second)
        ]
        if content[0] != content[1]:
            yield (
                f"{first.name} and {second.name} were validated on other data or with another "
                "tokenizer: only figures per byte can be compared, and those only on the same text."
            )


def differing_keys(runs: Sequence[RunRecord]) -> list[str]:
    """The keys of the resolved configs in which runs differ."""
    every = [dict(dotted_values(run.config)) for run in runs]
    names = dict.fromkeys(key for values in every for key in values)
    skipped = ("output_dir", "train.plan", "resume")
    return [
        key
        for key in names
        if key not in skipped and any(values.get(key) != every[0].get(key) for values in every)
    ]


def interval_of(found: Mapping[str, Any], key: str) -> str:
    bounds = found.get("intervals", {}).get(key)
    return f"{figure_text(bounds[0])} to {figure_text(bounds[1])}" if bounds else ""


def dotted_values(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted_values(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def figure_text(value: Any) -> str:
    """A value as people read it: numbers of four digits or more whole, others to four digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
