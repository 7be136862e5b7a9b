"""What the page shows of several runs together: a table to sort, figures with intervals, domains
and curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmkit.reporting import plots
from llmkit.reporting.evaluation_summary import METRIC_NAMES
from llmkit.reporting.format import bounds_of, bounds_text, figure_text, without_folders
from llmkit.reporting.page.curves import overlaid_curves
from llmkit.reporting.page.domain_table import domains_of_runs
from llmkit.reporting.page.run_comparison import RunComparison, dotted_values, finite, signed
from llmkit.reporting.plots import PlottedFigure
from llmkit.reporting.run_record import LOWER_IS_BETTER, RunRecord


def comparison_section(comparison: RunComparison, anchors: Sequence[str]) -> dict[str, Any]:
    """The values of the template for these runs, whose sections have these anchors: in the table
    the main figure comes first, then the keys, then the other figures."""
    figures, keys = comparison.figures, comparison.given_keys
    paired = bool(comparison.differences)
    short = _short_names(keys)
    headings = [{"name": METRIC_NAMES.get(key, key), "numeric": True} for key in figures]
    if paired:
        headings.insert(1, {"name": "difference from the best", "numeric": True})
    after = 2 if paired else 1
    headings[after:after] = [{"name": short[k], "numeric": False, "key": k} for k in keys]
    headings.insert(0, {"name": "run", "numeric": False})
    rows = [
        {
            "anchor": anchor,
            "name": run.name,
            "note": _note(comparison, run),
            "cells": _cells(comparison, run, paired),
        }
        for run, anchor in zip(comparison.runs, anchors, strict=True)
    ]
    return {
        "sentences": comparison.sentences,
        "warnings": comparison.warnings,
        "caption": "Figures on the held-out data with 95% intervals, and the keys that differ. "
        "A heading sorts the table.",
        "headings": headings,
        "rows": rows,
        "chosen": _chosen(comparison),
        "intervals": _intervals(comparison),
        "domains": domains_of_runs(comparison.runs),
        "curves": overlaid_curves(comparison.runs, figures),
    }


def _note(comparison: RunComparison, run: RunRecord) -> str:
    notes = ["best"] if run in comparison.ranked[:1] else []
    notes += [] if run.is_finished else ["unfinished"]
    return f" ({', '.join(notes)})" if notes else ""


def _cells(comparison: RunComparison, run: RunRecord, paired: bool) -> list[dict[str, Any]]:
    cells = []
    for key in comparison.figures:
        value, bounds = run.validation.get(key), bounds_text(run.validation, key)
        interval = f"({bounds})" if bounds else ""
        cells.append(_number(figure_text(value), finite(value), interval))
    if paired:
        cells.insert(1, _difference(comparison, run))
    values = dict(dotted_values(run.config))
    after = 2 if paired else 1
    cells[after:after] = [
        {
            "text": without_folders(figure_text(values.get(key))),
            "value": values.get(key, ""),
            "numeric": False,
        }
        for key in comparison.given_keys
    ]
    return cells


def _difference(comparison: RunComparison, run: RunRecord) -> dict[str, Any]:
    """The paired difference of the main figure from the best run."""
    if run in comparison.ranked[:1]:
        return _number("", 0.0, "")
    found = comparison.differences.get(run.name, {}).get(comparison.figures[0])
    if found is None:
        return _number("not in pairs", None, "")
    bounds = f"({signed(found.low)} to {signed(found.high)})"
    return _number(signed(found.value), found.value, bounds)


def _chosen(comparison: RunComparison) -> dict[str, Any] | None:
    """The keys that differ although nobody gave them, under each run."""
    keys = [key for key in comparison.keys if key not in comparison.given_keys]
    values = [dict(dotted_values(run.config)) for run in comparison.runs]
    rows = [
        [key, *(without_folders(figure_text(each.get(key))) for each in values)] for key in keys
    ]
    names = [run.name for run in comparison.runs]
    return {"columns": ["key", *names], "rows": rows} if rows else None


def _number(text: str, value: float | None, interval: str) -> dict[str, Any]:
    return {"text": text, "value": value, "interval": interval, "numeric": True}


def _intervals(comparison: RunComparison) -> dict[str, str] | None:
    """The main figure of each run with its interval, best first."""
    if len(comparison.ranked) < 2:
        return None
    key = comparison.figures[0]
    rows = [
        PlottedFigure(
            run.name,
            run.validation[key],
            bounds_of(run.validation, key),
            is_beside=place > 0,
        )
        for place, run in enumerate(comparison.ranked)
    ]
    name = METRIC_NAMES.get(key, key)
    better = "lower is better" if key in LOWER_IS_BETTER else "higher is better"
    figure = plots.draw_intervals(rows, f"held-out {name} ({better})", bars=False)
    shown = ", ".join(f"{row.name} {figure_text(row.value)}" for row in rows)
    note = "The axis does not begin at 0. Lines are 95% intervals of each run by itself; the "
    note += "differences in the table are more certain where they are computed in pairs."
    return {"svg": plots.as_svg(figure), "text": f"Held-out {name}: {shown}. {note}"}


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last parts of keys, where these differ."""
    leaves = [key.rpartition(".")[2] for key in keys]
    return {
        key: leaf if leaves.count(leaf) == 1 else key
        for key, leaf in zip(keys, leaves, strict=True)
    }
