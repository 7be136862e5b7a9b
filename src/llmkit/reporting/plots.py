"""Plots of a run: loss curves and confusion matrices."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.storage import atomic, jsonl

WITH_CELLS = 25
"""Maximum number of classes for which the cells of a confusion matrix are drawn."""

MAX_PAIRS = 20
"""Maximum number of pairs of classes that are drawn instead, for more classes."""

FEW_POINTS = 20
"""A curve of fewer points marks each of them."""

SHARES = ("accuracy", "f1_macro")
"""Validation metrics of classifiers that are drawn below the loss."""

_OF_DOMAIN = "validation_loss/"


def draw_loss_curve(
    metrics_file: Path, picture: Path, title: str, unit: str = "nats per token"
) -> None:
    """Plots training and validation loss, also of each domain, over the steps into a PNG file; a
    dotted line marks the step of the lowest validation loss."""
    figure = draw_curve(list(jsonl.read_records(metrics_file)), unit)
    figure.axes[0].set_title(title)
    figure.tight_layout()
    _save(figure, picture)


def draw_curve(records: Sequence[Mapping[str, Any]], unit: str) -> Any:
    """The losses of a run over its steps as a figure; below them the accuracy and F1 of a
    classifier on the validation data."""
    shares = [name for name in SHARES if any(f"validation_{name}" in r for r in records)]
    figure = _figure(8, 4.5 + 2.2 * bool(shares))
    panels = figure.subplots(1 + bool(shares), squeeze=False, sharex=True)
    _draw_losses(panels[0, 0], records, unit)
    if shares:
        axes = panels[1, 0]
        for name in shares:
            style = {"marker": "o", "label": f"validation {name.replace('_', ' ')}"}
            axes.plot(*_points(records, f"validation_{name}"), **style)
        axes.set(ylabel="share", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend()
    panels[-1, 0].set_xlabel("optimizer step")
    panels[-1, 0].locator_params(axis="x", integer=True)
    figure.tight_layout()
    return figure


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """The validation losses of several runs, by their names, over the steps in one figure."""
    figure = _figure(8, 4.5)
    axes = figure.subplots()
    for name, records in runs.items():
        axes.plot(*_points(records, "validation_loss"), ".-", label=name)
    axes.set(xlabel="optimizer step", ylabel="validation loss")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    return figure


def as_svg(figure: Any) -> str:
    """A figure as an SVG element that takes the colour of its text from the page around it."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "llmkit"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    drawn = text[text.index("<svg") :].replace("#000000", "currentColor")
    return drawn.replace("<text ", '<text fill="currentColor" ').replace("#ffffff", "transparent")


def _draw_losses(axes: Any, records: Sequence[Mapping[str, Any]], unit: str) -> None:
    steps, losses = _points(records, "train_loss")
    if steps:
        marker = "." if len(steps) < FEW_POINTS else ""
        style = {"label": "training", "linewidth": 1, "color": "#4c78a8"}
        axes.plot(steps, losses, marker=marker, **style)
    validated = _points(records, "validation_loss")
    if validated[0]:
        axes.plot(*validated, "o-", label="validation", color="#f58518")
        step, loss = min(zip(*validated, strict=True), key=lambda point: point[1])
        label = f"lowest validation loss: {loss:.3f} at step {step:,}"
        axes.axvline(step, color="#888888", linestyle=":", linewidth=1, label=label)
    names = dict.fromkeys(key for r in records for key in r if key.startswith(_OF_DOMAIN))
    for number, name in enumerate(names, 2):  # the first two colours are those above
        own = {"label": name.removeprefix(_OF_DOMAIN), "color": f"C{number}", "linewidth": 0.8}
        axes.plot(*_points(records, name), ".-", **own)
    axes.set(ylabel=f"loss ({unit})")
    axes.grid(alpha=0.3)
    if steps or validated[0]:
        axes.legend()


def _points(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """The steps at which a figure was measured, and its values."""
    found = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def draw_confusion_matrix(
    matrix: Sequence[Sequence[int]], names: Sequence[str], picture: Path, title: str
) -> None:
    """Plots how often each class was predicted as each other class into the PNG file `picture`.

    Up to 25 classes are drawn as a matrix [actual, predicted] of counts and shares of the actual
    class, correct cells in blue and wrong ones in orange; for more classes, the pairs that are
    confused most often.
    """
    counts = np.asarray(matrix)
    right = np.trace(counts) / max(1, counts.sum())
    title = f"{title}: {counts.sum():,} rows, accuracy {right:.3f}"
    labels = [name if len(name) <= 32 else f"{name[:31]}…" for name in names]
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
    bars = axes.barh(range(len(pairs)), values, color="#f58518")
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
