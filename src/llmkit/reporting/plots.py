"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.reporting import metrics

WITH_COUNTS = 25
"""Classes up to which a confusion matrix has room for its counts."""


_OF_DOMAIN = "validation_loss/"


def loss_curve(metrics_file: Path, picture: Path, unit: str = "nats per token") -> None:
    """Draws training and validation loss over the steps, that of each domain too, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = list(metrics.read(metrics_file))
    train = [(r["step"], r["train_loss"]) for r in records if "train_loss" in r]
    measured = [r for r in records if r.get("validation_loss") is not None]
    validation = [(r["step"], r["validation_loss"]) for r in measured]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    if train:
        axes.plot(*zip(*train, strict=True), label="training", linewidth=1, color="#4c78a8")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", label="validation", color="#f58518")
        step, loss = min(validation, key=lambda point: point[1])
        near = {"xytext": (-4, 8), "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"{loss:.3f}", (step, loss), **near)
    names = dict.fromkeys(key for r in measured for key in r if key.startswith(_OF_DOMAIN))
    for number, name in enumerate(names, 2):  # the first two colours are those above
        points = [(r["step"], r[name]) for r in measured if r.get(name) is not None]
        own = {"label": name.removeprefix(_OF_DOMAIN), "color": f"C{number}", "linewidth": 0.8}
        axes.plot(*zip(*points, strict=True), ".-", **own)
    axes.set(xlabel="step", ylabel=f"loss ({unit})")
    axes.grid(alpha=0.3)
    if train or validation:
        axes.legend()
    _save(figure, picture)


def confusion_matrix(matrix: Sequence[Sequence[int]], names: Sequence[str], picture: Path) -> None:
    """Draws how often each class (row) was taken for each (column) into `picture` (PNG).

    Shades are shares of the row; the counts stand in the cells as long as there is room.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = np.asarray(matrix)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    size = len(names)
    side = max(4.0, min(18.0, 2.5 + 0.4 * size if size <= WITH_COUNTS else 4 + 0.16 * size))
    figure, axes = pyplot.subplots(figsize=(side, side), dpi=120)
    # The root makes what is rare visible.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    font = 9 if size <= WITH_COUNTS else max(5.0, 9 - size / 20)
    labels = [name if len(name) <= 32 else f"{name[:31]}…" for name in names]
    axes.set_xticks(range(size), labels, rotation=90, fontsize=font)
    axes.set_yticks(range(size), labels, fontsize=font)
    axes.set(xlabel="predicted", ylabel="actual")
    if size <= WITH_COUNTS:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.3 else "black"
            count = counts[row, column]
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    _save(figure, picture)


def _save(figure: Any, picture: Path) -> None:
    """Writes a picture, whole or not at all."""
    from matplotlib import pyplot

    figure.tight_layout()
    partial = picture.with_name(f".{picture.name}.tmp")
    figure.savefig(partial, format="png")
    pyplot.close(figure)
    partial.replace(picture)
