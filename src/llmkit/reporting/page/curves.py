"""The curves of a run, or of several over each other, as pictures with what they show in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmkit.reporting import plots
from llmkit.reporting.evaluation_summary import METRIC_NAMES
from llmkit.reporting.format import figure_text
from llmkit.reporting.run_record import RunRecord

WIDTH = 4.6
"""Inches of a picture on a page, so that its text can be read on a phone."""

Picture = Mapping[str, str]
"""`svg` and `text`."""


def run_curve(run: RunRecord) -> Picture | None:
    """The curve of a run; None without figures."""
    records, metric = run.metrics, _metric(run)
    steps, losses = plots.points(records, "train_loss")
    best = plots.best_validation(records, metric)
    if not steps and best is None:
        return None
    parts = []
    if steps:
        parts.append(
            f"Training loss from {figure_text(losses[0])} at step {steps[0]:,} to "
            f"{figure_text(losses[-1])} at step {steps[-1]:,}."
        )
    if best is not None:
        name = METRIC_NAMES.get(metric, metric.replace("/", " of "))
        parts.append(f"Best validation {name}: {figure_text(best[1])} at step {best[0]:,}.")
    kept = run.result.get("best_step")
    if kept not in (None, run.result.get("step")) and _keeps_best(run):
        parts.append(f"The saved model is that of step {kept:,}.")
    unit = plots.NATS_PER_TOKEN if any("tokens" in r for r in records) else "nats per example"
    if any("predictions" in r for r in records):
        unit = "nats per hidden token"
    figure = plots.draw_curve(records, unit, metric, WIDTH)
    return {"svg": plots.as_svg(figure), "text": " ".join(parts)}


def overlaid_curves(runs: Sequence[RunRecord], figures: Sequence[str]) -> Picture | None:
    """The curves of several runs: by what they have seen where their steps differ in size, and per
    byte where their tokenizers differ. None if no run has a curve."""
    per_byte = "bits_per_byte" in figures and "perplexity" not in figures
    key, unit = "bits_per_byte" if per_byte else "loss", _common_unit(runs)
    drawn = {}
    for run in runs:
        seen = {r["step"]: r[unit] for r in run.metrics if unit in r} if unit else None
        records = [r for r in run.metrics if seen is None or r["step"] in seen]
        validated = plots.points(records, f"validation_{key}", seen)
        trained = ([], []) if per_byte else plots.points(records, "train_loss", seen)
        drawn[run.name] = plots.RunCurve(validated, trained)
    longest = max(len(values) for curve in drawn.values() for values, _ in curve)
    if longest < 2:
        return None
    x, name = f"{unit} trained on" if unit else "optimizer step", METRIC_NAMES.get(key, key)
    shown = "; ".join(
        f"{name} ends at {figure_text(values[-1])}"
        for name, ((_, values), _) in drawn.items()
        if values
    )
    lines = "" if per_byte else " Thin lines are training losses, dots validations."
    text = f"Validation {name} of each run by {x}: {shown}.{lines}"
    return {"svg": plots.as_svg(plots.draw_curves(drawn, x, name, WIDTH)), "text": text}


def _common_unit(runs: Sequence[RunRecord]) -> str | None:
    """What the runs count, if their steps differ in size; else None: they are compared by step."""
    sizes = {
        tuple(
            (run.config.get(section) or {}).get(key)
            for section, key in (("train", "global_batch_size"), ("data", "block_size"))
        )
        for run in runs
    }
    if len(sizes) < 2:
        return None
    units = ("tokens", "predictions", "examples")
    return next((u for u in units if all(any(u in r for r in run.metrics) for run in runs)), None)


def _metric(run: RunRecord) -> str:
    """The metric that the best step goes by, if the run was validated by it."""
    name = str((run.config.get("train") or {}).get("metric_for_best_model") or "loss")
    return name if any(f"validation_{name}" in r for r in run.metrics) else "loss"


def _keeps_best(run: RunRecord) -> bool:
    return bool((run.config.get("train") or {}).get("load_best_model_at_end"))
