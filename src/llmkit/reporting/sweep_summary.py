"""Summarize a sweep: what became of its runs, and a table of their keys and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmkit.config.yaml12 import dump
from llmkit.reporting.format import bounds_text, figure_text
from llmkit.reporting.page.comparability import HEADLINES

ROOM_FOR_TWO = 60
"""Columns of a terminal below which the table has one figure instead of two; the page has all."""


def describes_sweep(figures: Mapping[str, Any]) -> bool:
    """Whether a result is of a sweep."""
    return "sweep_dir" in figures and "runs" in figures


def of_sweep(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines below the table."""
    counts = Counter(run["status"] for run in figures["runs"])
    total = len(figures["runs"])
    states = ", ".join(f"{number} {status}" for status, number in counts.items())
    yield f"{total} runs in {figures['sweep_dir']}: {states}."
    yield from figures.get("sentences", ())
    if figures.get("page"):
        yield f"  report   {figures['page']}"
    if best := next((run for run in figures["runs"] if run["name"] == figures.get("best")), None):
        yield f"  best     {best['run_dir']}"


def sweep_rows(figures: Mapping[str, Any], columns: int) -> list[dict[str, Any]]:
    """The rows of the table for a terminal of this width: the best run marked, the values of its
    keys, its figures with their intervals; and its state where not all are finished."""
    runs, short = figures["runs"], _short_names(figures["keys"])
    shown = [key for key in HEADLINES if any(key in _validation(run) for run in runs)]
    shown = shown[: 1 if columns < ROOM_FOR_TWO else 2]
    best = shown and figures["command"] != "merge"
    mixed = figures.get("dry_run") or any(run["status"] != "finished" for run in runs)
    return [
        {
            **({"run": run["name"]} if figures["command"] == "merge" else {}),
            **({"best": "*" if run["name"] == figures["best"] else ""} if best else {}),
            **{short[key]: _value(value) for key, value in run["keys"].items()},
            **{key: _figure(_validation(run), key) for key in shown},
            **({"state": _state(run)} if mixed else {}),
        }
        for run in runs
    ]


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last parts of the keys, where these differ."""
    leaves = [key.rpartition(".")[2] for key in keys]
    return dict(zip(keys, leaves if len(set(leaves)) == len(keys) else keys, strict=True))


def _validation(run: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run.get("result", {}).get("validation") or {}
    return found


def _figure(found: Mapping[str, Any], key: str) -> str:
    if found.get(key) is None:
        return ""
    bounds = bounds_text(found, key)
    return f"{figure_text(found[key])}{f' ({bounds})' if bounds else ''}"


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else dump(value)


def _state(run: Mapping[str, Any]) -> str:
    return f"{run['status']}: {run['error']['kind']}" if "error" in run else str(run["status"])
