"""Plots of a run: loss curves and confusion matrices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.storage import jsonl

WITH_CELLS = 25
"""Maximum number of classes for which the cells of a confusion matrix are drawn."""

MOST_PAIRS = 20
"""Maximum number of pairs of classes that are drawn instead, for more classes."""

FEW_POINTS = 20
"""A curve of fewer points marks each of them."""

_OF_DOMAIN = "validation_loss/"


def draw_loss_curve(
    metrics_file: Path, picture: Path, title: str, unit: str = "nats per token"
) -> None:
    """Plots training and validation loss, also of each domain, over the steps into a PNG file; a
    dotted line marks the step of the lowest validation loss."""
    pyplot = _pyplot()
    records = list(jsonl.read_records(metrics_file))
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    train = [(r["step"], r["train_loss"]) for r in records if "train_loss" in r]
    if train:
        marker = "." if len(train) < FEW_POINTS else ""
        style = {"label": "training", "linewidth": 1, "color": "#4c78a8"}
        axes.plot(*zip(*train, strict=True), marker=marker, **style)
    measured = [r for r in records if r.get("validation_loss") is not None]
    validation = [(r["step"], r["validation_loss"]) for r in measured]
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", label="validation", color="#f58518")
        step, loss = min(validation, key=lambda point: point[1])
        label = f"lowest validation loss: {loss:.3f} at step {step:,}"
        axes.axvline(step, color="#888888", linestyle=":", linewidth=1, label=label)
    names = dict.fromkeys(key for r in measured for key in r if key.startswith(_OF_DOMAIN))
    for number, name in enumerate(names, 2):  # the first two colours are those above
        points = [(r["step"], r[name]) for r in measured if r.get(name) is not None]
        own = {"label": name.removeprefix(_OF_DOMAIN), "color": f"C{number}", "linewidth": 0.8}
        axes.plot(*zip(*points, strict=True), ".-", **own)
    axes.set(xlabel="optimizer step", ylabel=f"loss ({unit})", title=title)
    axes.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if train or validation:
        axes.legend()
    figure.tight_layout()
    _save(figure, picture)


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
    pyplot = _pyplot()
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = max(4.5, 2.5 + 0.6 * len(labels))
    figure, axes = pyplot.subplots(figsize=(side + 2, side), dpi=120, layout="constrained")
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
    pyplot = _pyplot()
    wrong = counts * ~np.eye(len(labels), dtype=bool)
    places = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [divmod(int(place), len(labels)) for place in places if wrong.flat[place]]
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.3 * max(1, len(pairs))), dpi=120)
    values = [int(wrong[pair]) for pair in pairs]
    bars = axes.barh(range(len(pairs)), values, color="#f58518")
    shares = [f"{wrong[row, column] / counts[row].sum():.0%}" for row, column in pairs]
    axes.bar_label(bars, [f"{n} ({s})" for n, s in zip(values, shares, strict=True)], padding=3)
    axes.set_yticks(range(len(pairs)), [f"{labels[a]} → {labels[p]}" for a, p in pairs])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))
    axes.set(xlabel="rows (share of the actual class)", title=f"{title}\nactual → predicted")
    figure.tight_layout()
    _save(figure, picture)


def _pyplot() -> Any:
    # Overrides any backend that the user has set: an unknown name would break the import.
    os.environ["MPLBACKEND"] = "agg"
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, picture: Path) -> None:
    """Writes a figure atomically."""
    from matplotlib import pyplot

    partial = picture.with_name(f".{picture.name}.tmp")
    figure.savefig(partial, format="png")
    pyplot.close(figure)
    partial.replace(picture)
