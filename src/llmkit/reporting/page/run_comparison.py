"""Several runs side by side: keys that differ, figures, and whether they can be compared."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from llmkit.errors import UsageError
from llmkit.reporting import plots
from llmkit.reporting.run_record import LOWER_IS_BETTER, RunRecord

HEADLINES = ("bits_per_byte", "perplexity", "accuracy", "f1_macro", "mae", "pearson", "loss")
"""Figures that runs are compared by, where they have them."""


def compare_runs(runs: Sequence[RunRecord], anchors: Sequence[str]) -> dict[str, Any]:
    """The table of the keys that differ and the figures, and the curves in one picture."""
    keys = differing_keys(runs)
    figures = [key for key in HEADLINES if any(key in run.validation for run in runs)]
    rows = []
    best = ranked_runs(runs)[:1]
    for run, anchor in zip(runs, anchors, strict=True):
        values = dict(dotted_values(run.config))
        cells = []
        for key in figures:
            value = run.validation.get(key)
            bounds = interval_of(run.validation, key)
            text = "" if value is None else figure_text(value)
            cells.append(
                {
                    "text": text,
                    "value": _finite(value),
                    "numeric": True,
                    "interval": bounds and f"({bounds})",
                }
            )
        given = [values.get(key, "") for key in keys]
        cells += [{"text": figure_text(value), "value": value} for value in given]
        notes = [*(["best"] if run in best else []), *([] if run.is_finished else ["unfinished"])]
        note = f" ({', '.join(notes)})" if notes else ""
        rows.append({"anchor": anchor, "name": run.name, "note": note, "cells": cells})
    names = [key.replace("_", " ") for key in figures]
    drawn = {run.name: run.metrics for run in runs}
    return {
        "sentences": verdict(runs),
        "warnings": unlike_data(runs),
        "caption": "Keys that differ, and figures on the validation data with 95% intervals. "
        "A heading sorts the table.",
        "columns": ["run", *names, *(key.rpartition(".")[2] for key in keys)],
        "numeric": names,
        "rows": rows,
        "curves": plots.as_svg(plots.draw_curves(drawn)),
        "curves_text": "Validation loss of each run by optimizer step.",
    }


def ranked_runs(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs by the first figure that they are compared by, best first; unfinished ones only if
    none is finished. Runs without the figure, or with one that is NaN or infinite, have no rank."""
    done = [run for run in runs if run.is_finished] or list(runs)
    key = _main_figure(done)
    usable = [run for run in done if _finite(run.validation.get(key)) is not None]
    return sorted(usable, key=lambda run: run.validation[key], reverse=key not in LOWER_IS_BETTER)


def _finite(value: float | None) -> float | None:
    """A figure; None for one that is missing, NaN or infinite."""
    return None if value is None or not math.isfinite(value) else value


def _main_figure(runs: Sequence[RunRecord]) -> str:
    """The first figure that a run has, of those that runs are compared by."""
    return next((key for key in HEADLINES if any(key in run.validation for run in runs)), "")


def verdict(runs: Sequence[RunRecord]) -> list[str]:
    """Which run is best, by how much, and how far that can be trusted."""
    ranked = ranked_runs(runs)
    if not ranked:
        return ["None of these runs has validation figures."]
    key = _main_figure(ranked)
    name, values = key.replace("_", " "), [run.validation[key] for run in ranked]
    if len(ranked) > 1 and differing_keys(ranked) == ["seed"]:
        mean, spread = statistics.fmean(values), statistics.stdev(values)
        low, high = map(figure_text, (min(values), max(values)))
        return [
            f"{len(ranked)} runs that differ only in their seed: mean {name} {figure_text(mean)}, "
            f"from {low} to {high} (standard deviation {figure_text(spread)})."
        ]
    first = ranked[0]
    text = f"{first.name} has the best {name}: {figure_text(values[0])}"
    if len(ranked) == 1:
        return [f"{text}."]
    if (equal := values.count(values[0])) > 1:
        text = f"{equal} runs share the best {name}: {figure_text(values[0])}"
        return [f"{text}; {first.name} is the first of them.", _caution(first, key, len(ranked))]
    text += f"; next is {ranked[1].name} with {figure_text(values[1])}"
    bounds = [run.validation.get("intervals", {}).get(key) for run in ranked[:2]]
    if all(bounds) and _overlap(*bounds):
        text += ". Their intervals overlap: the difference may be chance"
    return [f"{text}.", _caution(first, key, len(ranked))]


def _caution(best: RunRecord, key: str, count: int) -> str:
    """Why the figure of the best run is optimistic, and its figure on the test data, which was not
    used to choose the run."""
    text = (
        f"The best of {count} runs was chosen by its validation figure, which is therefore too "
        "optimistic"
    )
    measured = best.evaluation.get("test") or best.result.get("test") or {}
    if (value := measured.get(key)) is None:
        return f"{text}: evaluate it on other data with llmkit evaluate."
    bounds = interval_of(measured, key)
    shown = f"{figure_text(value)}{f' ({bounds})' if bounds else ''}"
    return f"{text}. On the test data, it has {key.replace('_', ' ')} {shown}."


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


def unlike_data(runs: Sequence[RunRecord]) -> list[str]:
    """What makes the figures of some runs hard to compare: other validation data."""
    found = {(run.facts.get("content") or {}).get("validation data") for run in runs}
    if len(found) < 2:
        return []
    return [
        f"These {len(runs)} runs were validated on {len(found)} different sets of data, or with "
        "different tokenizers: only figures per byte can be compared, and those only on the same "
        "text."
    ]


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
    if isinstance(value, int) or (float(value).is_integer() and 1000 <= abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e15 else f"{value:.4g}"
