"""Baselines that a model has to beat: majority class, TF-IDF, and token frequencies."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.data.examples.blocks import UNSCORED
from llmkit.data.records.labels import MULTI, REGRESSION, SINGLE
from llmkit.evaluation.labels import label_metrics
from llmkit.inference.labels.classify import THRESHOLD, AnyArray

_MAX_COUNTED_TOKENS = 4_000_000
"""Tokens of the training text that are counted; more would not change the frequencies."""

_ROWS_AT_ONCE = 256

_Texts = Sequence[str]


class Baseline(Protocol):
    """A model fitted to training data that predicts labels."""

    def predict(self, texts: _Texts) -> AnyArray:
        """One label per text: a class, a row of 0 and 1, or a number."""


class Majority:
    """Predicts the most frequent label for every text; for regression the mean."""

    def __init__(self, kind: str, labels: AnyArray) -> None:
        if kind == SINGLE:
            self.label = np.asarray(np.bincount(labels).argmax())
        elif kind == MULTI:
            self.label = labels.mean(0) >= THRESHOLD
        else:
            self.label = np.asarray(labels.mean())

    def predict(self, texts: _Texts) -> AnyArray:
        """The same label for every text."""
        return np.repeat(self.label[None], len(texts), axis=0)


class TfidfRegression:
    """Logistic regression on the TF-IDF of words and word pairs; ridge regression for numbers."""

    def __init__(self, kind: str, texts: _Texts, labels: AnyArray) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        # Keeps tokens of one character: sklearn's default pattern drops `I` and most Chinese words.
        self.vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), min_df=1, sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]"
        )
        self.model = _regression(kind)
        features = self.vectorizer.fit_transform(texts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # labels without examples, and convergence
            self.model.fit(features, labels)

    def predict(self, texts: _Texts) -> AnyArray:
        """The most likely label of each text."""
        predicted: AnyArray = self.model.predict(self.vectorizer.transform(texts))
        return predicted


def fit_baselines(kind: str, texts: _Texts, labels: AnyArray) -> dict[str, Baseline]:
    """The baselines, fitted to the training texts and their encoded labels; only the majority class
    if all texts have the same label, which nothing can be learned from."""
    found: dict[str, Baseline] = {"majority": Majority(kind, labels)}
    if (labels != labels[0]).any():
        found["tfidf"] = TfidfRegression(kind, texts, labels)
    return found


def score_baselines(
    baselines: dict[str, Baseline], kind: str, n_classes: int, texts: _Texts, labels: AnyArray
) -> dict[str, dict[str, float]]:
    """The metrics of each baseline on the examples that the model is measured on."""
    return {
        name: _figures(kind, n_classes, baseline.predict(texts), labels)
        for name, baseline in baselines.items()
    }


def nearest_targets(
    sources: _Texts, targets: _Texts, asked: _Texts, at_once: int = 512
) -> list[str]:
    """For each text, the target of the training source that is most similar to it: the cosine of
    TF-IDF vectors of runs of 1 to 3 characters within words, which suits every script."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3), sublinear_tf=True)
    known = vectorizer.fit_transform(sources)
    found: list[str] = []
    for first in range(0, len(asked), at_once):
        alike = vectorizer.transform(asked[first : first + at_once]) @ known.T
        found += [targets[row] for row in np.asarray(alike.argmax(axis=1)).ravel().tolist()]
    return found


def _regression(kind: str) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    if kind == REGRESSION:
        return Ridge()
    if kind == MULTI:
        return OneVsRestClassifier(LogisticRegression(C=10, solver="liblinear", random_state=0))
    return LogisticRegression(C=10, max_iter=300)


def _figures(kind: str, n_classes: int, predicted: AnyArray, labels: AnyArray) -> dict[str, float]:
    if kind == SINGLE:
        return label_metrics.single_label(label_metrics.count_labels(labels, predicted, n_classes))
    if kind == MULTI:
        return label_metrics.multi_label(label_metrics.count_label_sets(labels, predicted))
    distance = predicted - labels
    return {
        "mse": float((distance**2).mean()),
        "mae": float(np.abs(distance).mean()),
        "pearson": label_metrics.pearson(predicted, labels),
    }


class _Examples(Protocol):
    """Examples whose batches hold `targets`."""

    def __len__(self) -> int: ...
    def batch(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Unigram:
    """How well token frequencies predict a set of examples."""

    nll: float
    """Negative log-likelihood in nats, summed over the predictions."""
    hits: int
    """Targets that are the most frequent token."""
    predictions: int


def measure_unigram(train: _Examples, measured: _Examples) -> Unigram:
    """The likelihood of the targets of `measured` under the token frequencies of `train`.

    Counts use add-one smoothing, so that no token has probability 0; a long training text is
    sampled at evenly spaced rows.
    """
    wanted = np.concatenate(list(_targets(measured, np.arange(len(measured)))))
    width = max(1, train.batch(np.zeros(1, np.int64))["targets"].numel())
    every = max(1, len(train) * width // _MAX_COUNTED_TOKENS)
    seen = np.concatenate(list(_targets(train, np.arange(0, len(train), every))))
    size = 1 + int(max(seen.max(initial=0), wanted.max(initial=0)))
    frequency = np.bincount(seen, minlength=size) + 1.0
    surprise = -np.log(frequency / frequency.sum())
    hits = int((wanted == frequency.argmax()).sum())
    return Unigram(float(surprise[wanted].sum()), hits, len(wanted))


def unigram_figures(
    figures_of: Callable[[Any, int], dict[str, float]], train: _Examples, measured: _Examples
) -> dict[str, float]:
    """The metrics that `figures_of` computes for a model, here from the unigram model's sums."""
    found = measure_unigram(train, measured)
    sums = {"loss": np.asarray(found.nll), "hits": np.asarray(found.hits)}
    return figures_of(sums, found.predictions)


def _targets(examples: _Examples, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        targets = examples.batch(rows[first : first + _ROWS_AT_ONCE])["targets"].numpy()
        yield targets[targets != UNSCORED]
