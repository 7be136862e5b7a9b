"""The domains of a mixture: their shares, epochs and figures, of one run or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.reporting import plots
from llmkit.reporting.evaluation_summary import METRIC_NAMES
from llmkit.reporting.format import bounds_of, bounds_text, figure_text
from llmkit.reporting.plots import PlottedFigure
from llmkit.reporting.run_record import LOWER_IS_BETTER, RunRecord

_BESIDE = {"before": "before", "expert": "its expert alone"}
"""Other measurements of a domain, with the headings of their columns."""

_BY_IMPORTANCE = ("bits_per_byte", "accuracy", "loss")


def domain_section(run: RunRecord) -> dict[str, Any] | None:
    """The table of the domains of a run, and their main figure as a picture; None without."""
    domains = _domains(run)
    if not domains:
        return None
    key, merged = _figure(domains), run.command == "merge"
    beside = [part for part in _BESIDE if any(part in found for found in domains.values())]
    columns = ["domain", *([] if merged else ["share", "epochs"])]
    columns += [_BESIDE[part] if part != "before" or not merged else "seed" for part in beside]
    columns += [METRIC_NAMES.get(key, key), "95% interval"] if key else []
    rows = []
    for name, found in domains.items():
        row = [name]
        row += [] if merged else [f"{found.get('share', 0):.1%}", f"{found.get('epochs', 0):.2f}"]
        row += [figure_text((found.get(part) or {}).get(key)) for part in beside]
        row += [figure_text(_value(found, key)), _bounds(run, name, key)] if key else []
        rows.append(row)
    caption = "Figures on held-out text of each domain"
    caption += "" if merged else ", its share of the training examples, and its epochs"
    table = {"caption": caption, "columns": columns, "numeric": columns[1:], "rows": rows}
    return {**table, "picture": _picture(run, domains, key)}


def _picture(
    run: RunRecord, domains: Mapping[str, Mapping[str, Any]], key: str
) -> dict[str, str] | None:
    """The main figure of each domain with its interval."""
    measured = [
        PlottedFigure(name, value, _interval(run, name, key))
        for name, found in domains.items()
        if isinstance(value := _value(found, key), int | float)
    ]
    if not measured:
        return None
    better = "lower is better" if key in LOWER_IS_BETTER else "higher is better"
    label = METRIC_NAMES.get(key, key)
    figure = plots.draw_intervals(measured, f"held-out {label} ({better})", bars=True)
    shown = ", ".join(f"{row.name} {figure_text(row.value)}" for row in measured)
    return {
        "svg": plots.as_svg(figure),
        "text": f"Held-out {label} of each domain with its 95% interval: {shown}.",
    }


def domains_of_runs(runs: Sequence[RunRecord]) -> dict[str, Any] | None:
    """The main figure of each domain (down) under each run (across), the best of each domain
    marked; None for fewer than two runs with domains."""
    found = {run.name: domains for run in runs if (domains := _domains(run))}
    if len(found) < 2:
        return None
    key = _figure(next(iter(found.values())))
    rows = []
    for domain in dict.fromkeys(name for domains in found.values() for name in domains):
        values = {name: _value(domains.get(domain, {}), key) for name, domains in found.items()}
        known = [value for value in values.values() if isinstance(value, int | float)]
        best = (min if key in LOWER_IS_BETTER else max)(known, default=None)
        rows.append(
            {
                "domain": domain,
                "cells": [
                    {"text": figure_text(value), "best": value is not None and value == best}
                    for value in values.values()
                ],
            }
        )
    return {"figure": METRIC_NAMES.get(key, key), "runs": list(found), "rows": rows}


def _domains(run: RunRecord) -> Mapping[str, Mapping[str, Any]]:
    """The report of each domain; older runs may have kept only the rows that people read."""
    found = run.result.get("domains") or {}
    return found if isinstance(found, Mapping) else {}


def _figure(domains: Mapping[str, Mapping[str, Any]]) -> str:
    after = [found.get("after") or {} for found in domains.values()]
    return next((key for key in _BY_IMPORTANCE if any(key in each for each in after)), "")


def _value(found: Mapping[str, Any], key: str) -> Any:
    return (found.get("after") or {}).get(key)


def _interval(run: RunRecord, domain: str, key: str) -> Sequence[float] | None:
    if run.held_out is None or domain not in run.held_out.domains:
        return None
    return bounds_of({"intervals": run.held_out.of_domain(domain).intervals()}, key)


def _bounds(run: RunRecord, domain: str, key: str) -> str:
    bounds = _interval(run, domain, key)
    return bounds_text({"intervals": {key: bounds}}, key) if bounds else ""
