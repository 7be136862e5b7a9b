"""Summarize a merge of domain experts: what it made, and a table of what each domain gained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmkit.reporting.format import short
from llmkit.reporting.summary import main_figures

_Figures = Mapping[str, Any]
_Rows = list[dict[str, str]]

_KINDS = {
    "ensemble": "An ensemble of the experts",
    "moe": "A mixture of the experts",
    "average": "The average of the experts",
    "dense": "The expert",
}


def describes_merge(figures: _Figures) -> bool:
    """Whether a result is of a merge that was made."""
    return figures.get("command") == "merge" and "model_dir" in figures


def of_merge(figures: _Figures) -> Iterator[str]:
    """Yields the lines before the tables."""
    yield merge_sentence(figures)
    if text := main_figures(figures.get("validation", {}), {}):
        yield f"Held-out data: {text}."
    if runs := [run["name"] for run in figures.get("runs", ())][:-1]:
        yield f"Trained for it, in {figures['sweep_dir']}: {', '.join(runs)}."
    yield f"  model    {figures['model_dir']}"
    yield f"  report   {figures['run_dir']}/report.html"
    yield f'  next     llmkit generate --model {figures["run_dir"]} --prompt "..."'


def merge_sentence(figures: _Figures) -> str:
    """What a merge has made, in a sentence."""
    names = list(figures.get("experts", ()))
    last = f" and {names.pop()}" if len(names) > 1 else ""
    size = f": {short(figures['parameters'])} parameters" if "parameters" in figures else ""
    return f"{_KINDS.get(figures.get('into', ''), 'A merge of')} {', '.join(names)}{last}{size}."


def merge_tables(figures: _Figures) -> dict[str, _Rows]:
    """The tables of a merge by title; empty if it was not measured."""
    found = {}
    if rows := [_gains(name, each) for name, each in figures.get("domains", {}).items()]:
        found["bits per byte"] = rows
    if shares := figures.get("shares"):
        found["share of each expert"] = _shares(shares)
    return found


def _gains(name: str, found: _Figures) -> dict[str, str]:
    """A domain's bits per byte with the seed, the merge and its expert alone."""
    key = "bits_per_byte"
    after = found["after"][key]
    row = {"domain": name}
    if "before" in found:
        row["seed"] = f"{found['before'][key]:.4g}"
    row["merged"] = f"{after:.4g}"
    if "before" in found:
        row["change"] = f"{after / found['before'][key] - 1:+.1%}"
    if "expert" in found:
        row["its expert alone"] = f"{found['expert'][key]:.4g}"
    return row


def _shares(rows: Sequence[_Figures]) -> _Rows:
    """A row for each domain with a column for each expert."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        cells = found.setdefault(row["domain"], {"domain": row["domain"]})
        cells[row["expert"]] = f"{row['share']:.1%}"
    return list(found.values())
