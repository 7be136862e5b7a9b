"""The page of `llmkit report`: one self-contained HTML file on one or several runs."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from llmkit.reporting import merge_summary, plots, summary
from llmkit.reporting.format import clock, short
from llmkit.reporting.page.run_comparison import (
    HEADLINES,
    check_comparable,
    compare_runs,
    dotted_values,
    figure_text,
    interval_of,
)
from llmkit.reporting.run_record import RunRecord
from llmkit.storage import atomic

MAX_SAMPLED_STEPS = 3
MAX_CELLS, MAX_CONFUSED = 25, 20
"""Classes up to which a confusion matrix is shown whole, and pairs that are shown of more."""

MEANINGS = {
    "loss": "mean negative log-likelihood in nats; lower is better",
    "perplexity": "how many equally likely tokens the model chooses among, on average; lower is "
    "better",
    "bits_per_byte": "bits to encode a byte of the text, comparable between tokenizers; lower is "
    "better",
    "pseudo_perplexity": "perplexity of hidden tokens; compare it with masked models only",
    "accuracy": "share of predictions that are right; higher is better",
    "f1_macro": "mean F1 of the classes, each counting the same; higher is better",
    "f1_micro": "F1 over all decisions; higher is better",
    "f1_weighted": "mean F1 of the classes, by their number of rows; higher is better",
    "matthews": "correlation of predicted and actual class: 0 is chance, 1 is perfect",
    "roc_auc": "chance that a positive row scores above a negative one: 0.5 is chance",
    "calibration_error": "mean gap between probability and share of right predictions; lower is "
    "better",
    "mae": "mean absolute error in the unit of the labels; lower is better",
    "rmse": "root mean squared error in the unit of the labels; lower is better",
    "pearson": "linear correlation with the labels; 1 is perfect",
    "spearman": "correlation of the ranks; 1 is perfect",
}
BASELINES = {
    "unigram": "unigram model",
    "tfidf": "TF-IDF",
    "majority": "most frequent label",
}
_NOT_FIGURES = {"examples", "seconds", "threshold"}


def report_page(runs: Sequence[RunRecord]) -> str:
    """The page on these runs; of several, a table and curves that compare them come first.

    It needs no network and no other file, and escapes all that comes from data. Raises UsageError
    for runs that have no figure in common.
    """
    several = len(runs) > 1
    check_comparable(runs)
    environment = Environment(
        loader=PackageLoader("llmkit.reporting"), autoescape=True, trim_blocks=True
    )
    environment.filters["figure"] = figure_text
    anchors = [f"run-{number}" for number, _ in enumerate(runs, 1)]
    return environment.get_template("report.html").render(
        title=f"{len(runs)} runs compared" if several else runs[0].name,
        level=3 if several else 2,
        runs=[_run(run, anchor) for run, anchor in zip(runs, anchors, strict=True)],
        comparison=compare_runs(runs, anchors) if several else None,
    )


def _run(run: RunRecord, anchor: str) -> dict[str, Any]:
    curve, text = _curve(run)
    return {
        "anchor": anchor,
        "name": run.name,
        "sentence": _sentence(run),
        "warnings": [*_unfinished(run), *run.facts.get("warnings", [])],
        "figures": list(_figures(run)),
        "curve": curve,
        "curve_text": text,
        "confusion": list(_confusion(run)),
        "mistakes": run.evaluation.get("validation", {}).get("worst", []),
        "samples": list(_samples(run)),
        "tables": list(_tables(run)),
        "data": list(_data(run)),
        "speed": list(_speed(run)),
        "notes": run.facts.get("notes", []),
        "choices": list(_choices(run)),
        "repeat": _repeat(run),
        "environment": list(_environment(run)),
    }


def _repeat(run: RunRecord) -> str:
    """The command that repeats the run and prints its summary."""
    return shlex.join(word for word in run.command_line if word != "--json")


def _sentence(run: RunRecord) -> str:
    """What was trained, on what, for how long; or what was merged."""
    if run.command == "merge":
        return merge_summary.merge_sentence({**run.facts, **run.result})
    model, train = run.config.get("model", {}), run.config.get("train", {})
    base = model.get("name_or_path")
    what = "A text classifier" if "validation" in run.evaluation and _is_classifier(run) else (
        f"A {train.get('objective') or ''} language model".replace("  ", " ")
    )  # fmt: skip
    parameters = run.result.get("parameters")
    size = f", {short(parameters)} parameters" if parameters else ""
    begun = (
        f"fine-tuned from {base}"
        if base
        else f"trained from random weights ({model.get('architecture')})"
    )
    seconds = run.result.get("seconds")
    took = f" in {clock(seconds)}" if seconds else ""
    return f"{what}, {begun}{size}: {run.last_step:,} steps{took}."


def _is_classifier(run: RunRecord) -> bool:
    return bool({"accuracy", "mae"} & set(run.evaluation.get("validation", {})))


def _unfinished(run: RunRecord) -> Iterator[str]:
    if not run.is_finished and run.command == "merge":
        yield "This merge is unfinished. The command that began it completes it."
    elif not run.is_finished:
        plan = run.facts.get("plan") or [[0, None]]
        total = plan[-1][1]
        of = f" of {total:,}" if total else ""
        yield (
            f"This run is unfinished: its figures go up to step {run.last_step:,}{of}. "
            "The command that began it resumes it."
        )


def _figures(run: RunRecord) -> Iterator[dict[str, Any]]:
    for split, name in (("validation", "Held-out data"), ("test", "Test data")):
        found = run.evaluation.get(split) or run.result.get(split) or {}
        if split == "validation":
            found = run.validation
        if not found:
            continue
        beside = run.baseline if split == "validation" else found.get("baseline", {})
        baselines = [key for key in BASELINES if key in beside]
        rows = [
            {
                "name": key.replace("_", " "),
                "value": value,
                "interval": interval_of(found, key),
                "baselines": [beside[each].get(key) for each in baselines],
                "meaning": MEANINGS.get(key, ""),
            }
            for key, value in found.items()
            if isinstance(value, int | float) and key not in _NOT_FIGURES and "/" not in key
        ]
        rows.sort(key=lambda row: _rank(row["name"].replace(" ", "_")))
        examples = f": {found['examples']:,} examples" if "examples" in found else ""
        yield {
            "caption": f"{name}{examples}",
            "baselines": [BASELINES[each] for each in baselines],
            "rows": rows,
        }


def _rank(key: str) -> int:
    return HEADLINES.index(key) if key in HEADLINES else len(HEADLINES)


def _curve(run: RunRecord) -> tuple[str, str]:
    """The curve of a run as SVG, and what it shows in words; empty without figures."""
    measured = [r for r in run.metrics if r.get("validation_loss") is not None]
    trained = [r for r in run.metrics if r.get("train_loss") is not None]
    if not measured and not trained:
        return "", ""
    parts = []
    if trained:
        first, last = trained[0], trained[-1]
        parts.append(
            f"Training loss from {figure_text(first['train_loss'])} at step {first['step']:,} to "
            f"{figure_text(last['train_loss'])} at step {last['step']:,}."
        )
    if measured:
        best = min(measured, key=lambda r: r["validation_loss"])
        loss = figure_text(best["validation_loss"])
        parts.append(f"Lowest validation loss: {loss} at step {best['step']:,}.")
    unit = "nats per token" if any("tokens" in r for r in run.metrics) else "per example"
    return plots.as_svg(plots.draw_curve(run.metrics, unit)), " ".join(parts)


def _confusion(run: RunRecord) -> Iterator[dict[str, Any]]:
    for split, found in run.evaluation.items():
        counts = found.get("confusion_matrix")
        if not counts:
            continue
        names = list(found.get("per_class", {})) or [str(n) for n in range(len(counts))]
        shares = [[count / max(1, sum(row)) for count in row] for row in counts]
        matrix: dict[str, Any] = {
            "split": f"{split} data",
            "names": names,
            "cells": [],
            "pairs": [],
        }
        if len(names) <= MAX_CELLS:
            matrix["cells"] = [
                {
                    "name": name,
                    "cells": [
                        {"count": count, "share": shares[row][column], "right": row == column}
                        for column, count in enumerate(counts[row])
                    ],
                }
                for row, name in enumerate(names)
            ]
        else:
            pairs = [
                (count, shares[row][column], names[row], names[column])
                for row, each in enumerate(counts)
                for column, count in enumerate(each)
                if row != column and count
            ]
            pairs.sort(key=lambda pair: (-pair[0], -pair[1]))
            keys = ("count", "share", "actual", "predicted")
            matrix["pairs"] = [dict(zip(keys, p, strict=True)) for p in pairs[:MAX_CONFUSED]]
        yield matrix


def _samples(run: RunRecord) -> Iterator[dict[str, Any]]:
    found = [r for r in run.metrics if r.get("samples")]
    chosen = found[-1:] if len(found) == 1 else [*found[:1], *found[1:][-(MAX_SAMPLED_STEPS - 1) :]]
    for record in chosen:
        # Older runs kept only the text.
        some = [each if isinstance(each, Mapping) else {"": each} for each in record["samples"]]
        yield {"step": f"{record['step']:,}", "samples": some}


def _tables(run: RunRecord) -> Iterator[dict[str, Any]]:
    """The tables of the domains of a mixture."""
    found = run.result.get("domains") or {}
    if run.command == "merge":
        tables = merge_summary.merge_tables(run.result)
    elif found:  # older runs kept the rows
        rows = summary.domain_rows(found) if isinstance(found, Mapping) else found
        tables = {"domains": rows}
    else:
        return
    for title, rows in tables.items():
        keys = list(dict.fromkeys(key for row in rows for key in row))
        yield {
            "title": title.capitalize(),
            "columns": [key.replace("_", " ") for key in keys],
            "rows": [[row.get(key, "") for key in keys] for row in rows],
        }


def _data(run: RunRecord) -> Iterator[tuple[str, str]]:
    data = run.config.get("data", {})
    for key in ("train_files", "validation_files", "test_files"):
        if data.get(key):
            yield key.replace("_", " "), ", ".join(map(str, data[key]))
    yield from _flat(run.facts.get("data") or {})


def _flat(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The facts of a data report; of lists of rows only their number."""
    for key, value in found.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping) and "count" in value and "rows" in value:
            yield name, f"{value.get('count_stripped', value['count']):,}"
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            yield name, figure_text(value)


def _speed(run: RunRecord) -> Iterator[tuple[str, str]]:
    for unit in ("tokens", "examples"):
        rates = [r[f"{unit}_per_second"] for r in run.timing if f"{unit}_per_second" in r]
        if rates:
            yield "speed", f"{statistics.median(rates):,.0f} {unit}/s (median of the logged steps)"
    memory = [r["memory_bytes"] for r in run.timing if "memory_bytes" in r]
    if memory:
        yield "peak memory", f"{max(memory) / 2**20:,.0f} MiB in one process"
    shares = [r["mfu"] for r in run.timing if "mfu" in r]
    if shares:
        yield "model FLOPs utilization", f"{statistics.median(shares):.0%} of the matrix rate"
    if seconds := run.result.get("seconds"):
        yield "training time", clock(seconds)


def _choices(run: RunRecord) -> Iterator[dict[str, str]]:
    """The keys of the config that were given, and those that were `auto`, with their values."""
    origins: Mapping[str, str] = run.facts.get("origins") or {}
    values = dict(dotted_values(run.config))
    for key, origin in origins.items():
        if key in values:
            yield {"key": key, "value": figure_text(values[key]), "origin": origin}


def _environment(run: RunRecord) -> Iterator[tuple[str, str]]:
    for name in ("date", "host", "device", "commit"):
        if found := run.facts.get(name):
            yield name, str(found)
    yield "seed", str(run.config.get("seed", 0))
    for name, value in (run.facts.get("environment") or {}).items():
        yield name, str(value)
    for name, value in (run.facts.get("content") or {}).items():
        yield f"fingerprint of the {name}", str(value)


def write_page(runs: Sequence[RunRecord], path: Path) -> None:
    """Writes the page on these runs, whole or not at all; raises WriteError."""
    atomic.replace_text(path, report_page(runs))
