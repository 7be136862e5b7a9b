"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path

from llmkit.reporting import metrics


def loss_curve(metrics_file: Path, picture: Path, unit: str = "nats per token") -> None:
    """Draws training and validation loss over the steps into `picture` (PNG)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = list(metrics.read(metrics_file))
    train = [(r["step"], r["train_loss"]) for r in records if "train_loss" in r]
    validation = [(r["step"], r["validation_loss"]) for r in records if "validation_loss" in r]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    if train:
        axes.plot(*zip(*train, strict=True), label="training", linewidth=1, color="#4c78a8")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", label="validation", color="#f58518")
        step, loss = min(validation, key=lambda point: point[1])
        axes.annotate(f"{loss:.3f}", (step, loss), xytext=(0, -14), textcoords="offset points")
    axes.set(xlabel="step", ylabel=f"loss ({unit})")
    axes.grid(alpha=0.3)
    if train or validation:
        axes.legend()
    figure.tight_layout()
    partial = picture.with_name(f".{picture.name}.tmp")
    figure.savefig(partial, format="png")
    pyplot.close(figure)
    partial.replace(picture)
