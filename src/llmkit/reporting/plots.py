"""Plots of runs: loss curves, confusion matrices, and figures with intervals."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit.reporting.evaluation_summary import METRIC_NAMES
from llmkit.reporting.run_record import LOWER_IS_BETTER
from llmkit.storage import atomic, jsonl

WITH_CELLS = 25
"""Maximum number of classes for which the cells of a confusion matrix are drawn."""

MAX_PAIRS = 20
"""Maximum number of pairs of classes that are drawn instead, for more classes."""

FEW_POINTS = 20
"""A curve of fewer points marks each of them."""

SHARES = ("accuracy", "f1_macro")
"""Validation metrics of classifiers that are drawn below the loss."""

SERIES = (
    "#1f68ab", "#b84e00", "#2f7d32", "#7b4bb3", "#00787a", "#b0306a", "#6b6b00", "#8c564b",
)  # fmt: skip
"""Colours of curves; a page shows the n-th one as its CSS variable `--series-n`, from 1."""

MUTED = "#767676"
"""Colour of what is beside the result, such as baselines; on a page `--muted`."""

NATS_PER_TOKEN = "nats per token"

_LINES = ("-", "--", ":", "-.")
_MAX_TICKS = 7
_OF_DOMAIN = "validation_loss/"

Records = Sequence[Mapping[str, Any]]


class PlottedFigure(NamedTuple):
    """A figure with its interval, if it has one."""

    name: str
    value: float
    bounds: Sequence[float] | None = None
    is_beside: bool = False
    """Whether it is a baseline, or a run that is not the best."""


class RunCurve(NamedTuple):
    """The curves of one run among others, as x and y values each."""

    validated: tuple[Sequence[float], Sequence[float]]
    trained: tuple[Sequence[float], Sequence[float]]


def draw_loss_curve(
    metrics_file: Path,
    picture: Path,
    title: str,
    unit: str = NATS_PER_TOKEN,
    metric: str = "loss",
) -> None:
    """Plots training and validation loss, also of each domain, over the steps into a PNG file; a
    dotted line marks the step that is best by a validation metric."""
    figure = draw_curve(list(jsonl.read_records(metrics_file)), unit, metric)
    figure.axes[0].set_title(title)
    figure.tight_layout()
    _save(figure, picture)


def draw_curve(records: Records, unit: str, metric: str = "loss", width: float = 8) -> Any:
    """The losses of a run over its steps as a figure of this width in inches, with the perplexity
    on a second axis if they are in nats per token; below them the accuracy and F1 of a classifier
    on the validation data."""
    shares = [name for name in SHARES if any(f"validation_{name}" in r for r in records)]
    tall = width * (0.56 if width >= 8 else 0.7)
    figure = _figure(width, tall * (1 + 0.5 * bool(shares)))
    ratios = [2, 1] if shares else [1]
    panels = figure.subplots(len(ratios), squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
    _draw_losses(panels[0], records, unit)
    if shares:
        for number, name in enumerate(shares):
            style = {"color": SERIES[(1, 4)[number]], "linestyle": _LINES[number]}
            label = f"validation {METRIC_NAMES[name]}"
            panels[1].plot(*points(records, f"validation_{name}"), marker="o", label=label, **style)
        panels[1].set(ylabel="share", ylim=(0, 1.04))
    _mark_best(panels, records, metric)
    for axes in panels:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize="small")
    panels[-1].set_xlabel("optimizer step")
    panels[-1].locator_params(axis="x", integer=True)
    figure.tight_layout()
    return figure


def draw_curves(runs: Mapping[str, RunCurve], x: str, y: str, width: float = 8) -> Any:
    """The curves of each run, by its name, in one figure: validations as dots, training as a thin
    line of the same colour. `x` and `y` name the axes."""
    figure = _figure(width, width * 0.75)
    axes = figure.subplots()
    for number, (name, curve) in enumerate(runs.items()):
        style = {
            "color": SERIES[number % len(SERIES)],
            "linestyle": _LINES[number // len(SERIES) % len(_LINES)],
        }
        axes.plot(*curve.trained, linewidth=0.8, alpha=0.7, **style)
        axes.plot(*curve.validated, marker="o", markersize=4, label=name, **style)
    axes.set(xlabel=x, ylabel=y)
    axes.locator_params(axis="x", integer=True, nbins=6)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    figure.tight_layout()
    return figure


def draw_intervals(rows: Sequence[PlottedFigure], x: str, *, bars: bool, width: float = 4.6) -> Any:
    """Figures with their 95% intervals, one below another: as bars that begin at 0, or as dots on
    an axis that shows their differences."""
    figure = _figure(width, 0.75 + 0.36 * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        color = MUTED if row.is_beside else SERIES[0]
        if bars:
            axes.barh(place, row.value, height=0.62, color=color, alpha=0.55)
        else:
            axes.plot(row.value, place, "o", color=color)
        if row.bounds is not None:
            axes.plot(row.bounds, (place, place), "|-", color=color, markersize=9)
        end = max([row.value, *(row.bounds or ())])
        axes.annotate(f"{row.value:.4g}", (end, place), (6, 0), textcoords="offset points",
                      va="center", fontsize="small")  # fmt: skip
    axes.set_yticks(range(len(rows)), [_shortened(row.name) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(x)
    axes.margins(x=0.16)
    if bars:
        axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.tight_layout()
    return figure


def as_svg(figure: Any) -> str:
    """A figure as an SVG element that takes its colours from the page around it."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "llmkit"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    drawn = text[text.index("<svg") :].replace("#000000", "currentColor")
    for number, color in enumerate(SERIES, 1):
        drawn = drawn.replace(color, f"var(--series-{number})")
    drawn = drawn.replace(MUTED, "var(--muted)").replace("#ffffff", "transparent")
    return drawn.replace("<text ", '<text fill="currentColor" ')


def points(
    records: Records, name: str, x: Mapping[int, float] | None = None
) -> tuple[list[float], list[float]]:
    """The steps at which a figure was measured, or other values `x` of these steps, and the figure
    there."""
    found = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    return [step if x is None else x[step] for step, _ in found], [value for _, value in found]


def best_validation(records: Records, metric: str) -> tuple[int, float] | None:
    """The step that is best by a validation metric, and the metric there; step 0 only counts if
    there is no other."""
    steps, values = points(records, f"validation_{metric}")
    sign = 1 if metric.partition("/")[0] in LOWER_IS_BETTER else -1
    found = [
        (step == 0, sign * value, int(step)) for step, value in zip(steps, values, strict=True)
    ]
    if not found:
        return None
    _, value, step = min(found)
    return step, sign * value


def _draw_losses(axes: Any, records: Records, unit: str) -> None:
    steps, losses = points(records, "train_loss")
    if steps:
        marker = "." if len(steps) < FEW_POINTS else ""
        style = {"label": "training", "linewidth": 1, "color": SERIES[0]}
        axes.plot(steps, losses, marker=marker, **style)
    validated = points(records, "validation_loss")
    if validated[0]:
        axes.plot(*validated, "o-", label="validation", color=SERIES[1])
    names = dict.fromkeys(key for r in records for key in r if key.startswith(_OF_DOMAIN))
    for number, name in enumerate(names, 2):  # the first two colours are those above
        own = {"color": SERIES[number % len(SERIES)], "linestyle": _LINES[number // len(SERIES)]}
        label = name.removeprefix(_OF_DOMAIN)
        axes.plot(*points(records, name), ".", label=label, linewidth=0.8, **own)
    axes.set(ylabel=f"loss ({unit})")
    if unit == NATS_PER_TOKEN and (steps or validated[0]):
        beside = axes.secondary_yaxis("right", functions=(_exp, _log))
        low, high = (_exp(value) for value in axes.get_ylim())
        beside.set_yticks(_ticks_between(low, high))
        beside.yaxis.set_major_formatter(lambda tick, _: f"{tick:,.0f}")
        beside.set_ylabel("perplexity")


def _ticks_between(low: float, high: float) -> list[float]:
    """A few round numbers between two, evenly spaced on a logarithmic axis."""
    numbers = [[m * 10.0**n for n in range(31) for m in ms] for ms in ((1, 2, 5), (1,))]
    found = [[tick for tick in ticks if low <= tick <= high] for ticks in numbers]
    chosen = found[0] if len(found[0]) <= _MAX_TICKS else found[1]
    return chosen[:: -(-len(chosen) // _MAX_TICKS) or 1]


def _mark_best(panels: Sequence[Any], records: Records, metric: str) -> None:
    """Draws a line at the best step through all panels, with its label where the metric is."""
    if (found := best_validation(records, metric)) is None:
        return
    step, value = found
    figure, _, domain = metric.partition("/")
    name = METRIC_NAMES.get(figure, figure) + (f" of {domain}" if domain else "")
    label = f"best validation {name}: {value:.3f} at step {step:,}"
    own = panels[-1] if metric in SHARES and len(panels) > 1 else panels[0]
    for axes in panels:
        named = {"label": label} if axes is own else {}
        axes.axvline(step, color=MUTED, linestyle=":", linewidth=1.2, **named)


def _exp(value: Any) -> Any:
    return np.exp(np.minimum(value, 700.0))


def _log(value: Any) -> Any:
    return np.log(np.maximum(value, np.finfo(float).tiny))


def _shortened(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:31]}…"


def draw_confusion_matrix(
    matrix: Sequence[Sequence[int]],
    names: Sequence[str],
    picture: Path,
    title: str,
    unit: str = "rows",
) -> None:
    """Plots how often each class was predicted as each other class into the PNG file `picture`.

    Up to 25 classes are drawn as a matrix [actual, predicted] of counts and shares of the actual
    class, correct cells in blue and wrong ones in orange; for more classes, the pairs that are
    confused most often. `unit` names what is counted.
    """
    counts = np.asarray(matrix)
    right = np.trace(counts) / max(1, counts.sum())
    share = "of the right type" if unit == "entities" else "right"
    title = f"{title}: {counts.sum():,} {unit}, {right:.1%} {share}"
    labels = [_shortened(name) for name in names]
    draw = _cells if len(names) <= WITH_CELLS else _confused_pairs
    draw(counts, labels, picture, title)


def _cells(counts: NDArray[Any], labels: Sequence[str], picture: Path, title: str) -> None:
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = max(4.5, 2.5 + 0.6 * len(labels))
    figure = _figure(side + 2, side)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    on_diagonal = np.eye(len(labels), dtype=bool)
    for kind, shown, colors in (
        ("wrong", ~on_diagonal, "Oranges"),
        ("right", on_diagonal, "Blues"),
    ):
        part = np.ma.masked_array(shares, ~shown)
        image = axes.imshow(part, cmap=colors, vmin=0, vmax=1)
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
        bar.set_label(f"{kind}: share of the actual class")
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="actual", title=title)
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.6 else "black"
        text = f"{counts[row, column]}\n{shares[row, column]:.0%}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    _save(figure, picture)


def _confused_pairs(counts: NDArray[Any], labels: Sequence[str], picture: Path, title: str) -> None:
    wrong = counts * ~np.eye(len(labels), dtype=bool)
    places = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = [divmod(int(place), len(labels)) for place in places if wrong.flat[place]]
    figure = _figure(9, 1.5 + 0.3 * max(1, len(pairs)))
    axes = figure.subplots()
    values = [int(wrong[pair]) for pair in pairs]
    bars = axes.barh(range(len(pairs)), values, color=SERIES[1])
    shares = [f"{wrong[row, column] / counts[row].sum():.0%}" for row, column in pairs]
    axes.bar_label(bars, [f"{n} ({s})" for n, s in zip(values, shares, strict=True)], padding=3)
    axes.set_yticks(range(len(pairs)), [f"{labels[a]} → {labels[p]}" for a, p in pairs])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="rows (share of the actual class)", title=f"{title}\nactual → predicted")
    figure.tight_layout()
    _save(figure, picture)


def _figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches, which belongs to no window.

    pyplot would choose the backend of the whole process, such as a notebook's.
    """
    _import_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120)


def _import_matplotlib() -> None:
    """Imports matplotlib as the user has set it up, but without a backend that it does not know,
    which would break the import."""
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if backend is not None:
        os.environ["MPLBACKEND"] = backend
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


def _save(figure: Any, picture: Path) -> None:
    """Writes a figure atomically; raises WriteError."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    atomic.replace_bytes(picture, file.getvalue())
