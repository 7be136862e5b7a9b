"""Explain the figures of a run in sentences, each with its baseline and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

FEWEST_STEPS = 50
"""Optimizer steps below which a new language model has hardly learned anything."""

FAR = 1.0
"""Nats between held-out and training loss from which to warn: e times the perplexity."""

LONGER = "; train longer with train.num_train_epochs, or try another train.learning_rate"
PRETRAINED = "; start from a pretrained encoder with --model, or train longer"

_Figures = Mapping[str, Any]


def of_steps(step: int, from_scratch: bool) -> Iterator[str]:
    """Warns if a run was too short for a new language model to learn much."""
    if from_scratch and step < FEWEST_STEPS:
        yield (
            f"only {step:,} optimizer {'step' if step == 1 else 'steps'}: a new model needs "
            "hundreds to learn a language; train longer with train.max_steps, "
            "train.num_train_epochs or train.max_minutes"
        )


def of_language_model(validation: _Figures, baseline: _Figures, train_loss: float) -> Iterator[str]:
    """Warns if held-out loss (nats) is no better than the unigram model's, or else if it is far
    above the training loss."""
    loss = validation.get("loss")
    if loss is None:
        return
    if loss >= baseline["loss"]:
        yield (
            f"the held-out loss of {loss:.2f} is no better than that of a unigram model, "
            f"{baseline['loss']:.2f}, which knows only how often each token occurs: train longer, "
            f"or check that the held-out text is like the training text (training loss "
            f"{train_loss:.2f})"
        )
    elif loss - train_loss > FAR:
        yield (
            f"the held-out loss of {loss:.2f} is far above the training loss of {train_loss:.2f}: "
            "the held-out text is unlike the training text, or the model has memorised it; compare "
            "the two texts, train on more text, or train for fewer epochs"
        )


def of_measured_text(name: str, figures: _Figures) -> Iterator[str]:
    """Warns if a language model predicts a text no better than the unigram model of that text."""
    for key in ("perplexity", "pseudo_perplexity"):
        found, baseline = figures.get(key), figures["baseline"].get(key)
        if found is not None and baseline is not None and found >= baseline:
            yield (
                f"{name}: a {key.replace('_', '-')} of {found:.4g} is no better than the "
                f"{baseline:.4g} of a unigram model, which knows only how often each token of this "
                "text occurs: the model has not learned this kind of text"
            )


def of_classifier(name: str, figures: _Figures, advice: str) -> Iterator[str]:
    """Warns if a classifier is no better than its baselines on the rows `name`, with `advice`."""
    beside = figures.get("baseline", {})
    if "mse" in figures:
        yield from _of_regression(name, figures, beside)
    elif (majority := _majority(beside)) and _is_behind(figures, majority, or_equal=True):
        yield (
            f"{name}: accuracy {_with_interval(figures, 'accuracy')} is no better than always "
            f"predicting the most frequent label ({majority['accuracy']:.3f}): the classifier has "
            f"not learned to distinguish the labels{advice}"
        )
    elif (tfidf := beside.get("tfidf")) and _is_behind(figures, tfidf):
        yield (
            f"{name}: accuracy {_with_interval(figures, 'accuracy')} is worse than TF-IDF with "
            f"logistic regression ({tfidf['accuracy']:.3f}), and so is F1{advice}"
        )


def _of_regression(name: str, figures: _Figures, beside: _Figures) -> Iterator[str]:
    constant, tfidf = _majority(beside), beside.get("tfidf")
    error = f"mean squared error {_with_interval(figures, 'mse')}"
    if constant and figures["mse"] >= constant["mse"]:
        yield (
            f"{name}: {error} is no better than always predicting the mean "
            f"({constant['mse']:.4g}): the model has not learned to predict the number"
        )
    elif tfidf and figures["mse"] > tfidf["mse"]:
        yield f"{name}: {error} is worse than TF-IDF with ridge regression ({tfidf['mse']:.4g})"


def _majority(beside: _Figures) -> _Figures | None:
    return beside.get("majority") or beside.get("majority_of_these_rows")


def _is_behind(figures: _Figures, other: _Figures, or_equal: bool = False) -> bool:
    """Whether accuracy and macro F1 are both lower; only one lower is a trade-off."""
    pairs = [(figures[name], other[name]) for name in ("accuracy", "f1_macro")]
    return all(one < two or (or_equal and one == two) for one, two in pairs)


def _with_interval(figures: _Figures, name: str) -> str:
    interval = figures.get("intervals", {}).get(name)
    shown = f"{figures[name]:.4g}"
    return f"{shown} (95% interval {interval[0]:.4g} to {interval[1]:.4g})" if interval else shown
