"""Summarize a training run in a few lines: what was done, how good it is, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmkit.reporting.console import clock, short

_Figures = Mapping[str, Any]


def is_training(figures: _Figures) -> bool:
    """Whether a result is from a run that trained a model."""
    return "model_dir" in figures and "train_loss" in figures


def of_training(figures: _Figures) -> Iterator[str]:
    """Yields the lines, each at most a screen wide except for paths; figures have baselines."""
    step = figures["step"]
    speed = next(
        (f", {value:,.0f} {name.replace('_per_second', '')}/s"
         for name, value in figures.items() if name.endswith("_per_second") and value),
        "",
    )  # fmt: skip
    yield (
        f"Done: {step:,} {'step' if step == 1 else 'steps'} in {clock(figures['seconds'])} "
        f"({short(figures['parameters'])} parameters{speed})."
    )
    for split in ("validation", "test"):
        found = figures.get(split) or {}
        beside = figures.get("baseline", {}) if split == "validation" else found.get("baseline", {})
        yield from _quality(split, found, beside)
    if figures.get("best_step") not in (None, step):
        yield f"The saved model is that of step {figures['best_step']:,}, the best in validation."
    yield f"  model    {figures['model_dir']}"
    yield f"  curve    {figures['run_dir']}/loss.png"
    for picture in figures.get("pictures", {}).values():
        yield f"  mistakes {picture}"
    yield f"  next     {_next_command(figures)}"


def _quality(split: str, found: _Figures, beside: _Figures) -> Iterator[str]:
    name = "Held-out data" if split == "validation" else "Test data"
    for shown in (_of_numbers, _of_classifier, _of_masked, _of_text):
        if text := shown(found, beside):
            yield f"{name}: {text}."
            return


def _of_classifier(found: _Figures, beside: _Figures) -> str:
    if "accuracy" not in found or "f1_macro" not in found:
        return ""
    others = [
        f"{label} {beside[key]['accuracy']:.3f}"
        for key, label in (("tfidf", "TF-IDF"), ("majority", "most frequent label"))
        if key in beside
    ]
    return (
        f"accuracy {found['accuracy']:.3f}{_interval(found, 'accuracy')}{_beside(others)}, "
        f"macro F1 {found['f1_macro']:.3f}"
    )


def _of_numbers(found: _Figures, beside: _Figures) -> str:
    if "mae" not in found:
        return ""
    others = [
        f"{label} {beside[key]['mae']:.4g}"
        for key, label in (("tfidf", "TF-IDF"), ("majority", "always the mean"))
        if key in beside
    ]
    error = f"mean absolute error {found['mae']:.4g}{_interval(found, 'mae')}"
    return f"{error}{_beside(others)}, Pearson correlation {found['pearson']:.3f}"


def _of_masked(found: _Figures, beside: _Figures) -> str:
    if "accuracy" not in found:
        return ""
    unigram = beside.get("unigram", {})
    others = [f"most frequent token {unigram['accuracy']:.1%}"] if "accuracy" in unigram else []
    right = f"{found['accuracy']:.1%} of the hidden tokens predicted{_beside(others)}"
    return f"{right}, loss {found['loss']:.3f}"


def _of_text(found: _Figures, beside: _Figures) -> str:
    if not isinstance(found.get("perplexity"), int | float):
        return ""
    unigram = beside.get("unigram", {})
    others = [f"unigram model {unigram['perplexity']:.4g}"] if "perplexity" in unigram else []
    bits = f", {found['bits_per_byte']:.3f} bits per byte" if "bits_per_byte" in found else ""
    if bits and "bits_per_byte" in unigram:
        bits += f" (unigram model {unigram['bits_per_byte']:.3f})"
    return f"perplexity {found['perplexity']:.4g}{_beside(others)}{bits}"


def _interval(found: _Figures, name: str) -> str:
    bounds = found.get("intervals", {}).get(name)
    return f" (95% interval {bounds[0]:.3g} to {bounds[1]:.3g})" if bounds else ""


def _beside(others: list[str]) -> str:
    return f" [{', '.join(others)}]" if others else ""


def _next_command(figures: _Figures) -> str:
    run, found = figures["run_dir"], figures.get("validation") or figures.get("test") or {}
    if figures["command"] == "finetune" and ("f1_macro" in found or "mae" in found):
        return f"llmkit predict --model {run} --csv new.csv"
    return f'llmkit generate --model {run} --prompt "..."'
