"""What costs next to nothing to predict: a model has to be better than this."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from llmkit.evaluation import classification as metrics
from llmkit.evaluation.classification import MULTI, REGRESSION, SINGLE, Numbers

Texts = Sequence[str]


class Baseline(Protocol):
    """Something that was fitted to training data and predicts labels."""

    def predict(self, texts: Texts) -> Numbers:
        """A label for each text: a class, a row of 0 and 1, or a number."""


class Majority:
    """The commonest label for every text; for regression the mean."""

    def __init__(self, kind: str, labels: Numbers) -> None:
        if kind == SINGLE:
            self.label = np.asarray(np.bincount(labels).argmax())
        elif kind == MULTI:
            self.label = labels.mean(0) >= metrics.THRESHOLD
        else:
            self.label = np.asarray(labels.mean())

    def predict(self, texts: Texts) -> Numbers:
        """The same for each."""
        return np.repeat(self.label[None], len(texts), axis=0)


class TfidfRegression:
    """Logistic regression on the TF-IDF of words and word pairs; ridge regression for numbers."""

    def __init__(self, kind: str, texts: Texts, labels: Numbers) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        # Tokens of one character too: sklearn's own pattern drops `I`, and most of Chinese.
        self.vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), min_df=1, sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]"
        )
        self.model = _regression(kind)
        features = self.vectorizer.fit_transform(texts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # labels that no text has, and the last digits of a fit
            self.model.fit(features, labels)

    def predict(self, texts: Texts) -> Numbers:
        """The likeliest label of each."""
        predicted: Numbers = self.model.predict(self.vectorizer.transform(texts))
        return predicted


def fit(kind: str, texts: Texts, labels: Numbers) -> dict[str, Baseline]:
    """The baselines, fitted to the training texts and their encoded labels."""
    return {
        "majority": Majority(kind, labels),
        "tfidf": TfidfRegression(kind, texts, labels),
    }


def score(
    baselines: dict[str, Baseline], kind: str, n_classes: int, texts: Texts, labels: Numbers
) -> dict[str, dict[str, float]]:
    """The figures of each baseline on the same examples as the model's."""
    return {
        name: _figures(kind, n_classes, baseline.predict(texts), labels)
        for name, baseline in baselines.items()
    }


def _regression(kind: str) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    if kind == REGRESSION:
        return Ridge()
    if kind == MULTI:
        return OneVsRestClassifier(LogisticRegression(C=10, solver="liblinear", random_state=0))
    return LogisticRegression(C=10, max_iter=300)


def _figures(kind: str, n_classes: int, predicted: Numbers, labels: Numbers) -> dict[str, float]:
    if kind == SINGLE:
        return metrics.single_label(metrics.count_labels(labels, predicted, n_classes))
    if kind == MULTI:
        return metrics.multi_label(metrics.count_label_sets(labels, predicted))
    distance = predicted - labels
    return {
        "mse": float((distance**2).mean()),
        "mae": float(np.abs(distance).mean()),
        "pearson": metrics.pearson(predicted, labels),
    }
