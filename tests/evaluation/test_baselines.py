"""The baselines: fitted to one table or text, and scored on another."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llmkit.data.records.labels import MULTI, REGRESSION, SINGLE
from llmkit.evaluation import baselines
from llmkit.evaluation.baselines import measure_unigram

GOOD, BAD = ["good film", "a good day", "good, very good"], ["bad film", "a bad day", "so bad"]
TEXTS = [*GOOD, *BAD, "good again"]
LABELS = np.array([1, 1, 1, 0, 0, 0, 1])


def score(kind: str, labels: np.ndarray, n_classes: int) -> dict:
    fitted = baselines.fit_baselines(kind, TEXTS, labels)
    return baselines.score_baselines(fitted, kind, n_classes, TEXTS, labels)


def test_the_majority_is_the_commonest_label() -> None:
    found = score(SINGLE, LABELS, 2)
    assert found["majority"]["accuracy"] == pytest.approx(4 / 7)
    assert found["majority"]["f1_macro"] == pytest.approx(8 / 11 / 2)


def test_words_that_tell_the_label_are_found() -> None:
    assert score(SINGLE, LABELS, 2)["tfidf"]["accuracy"] == 1.0


def test_several_labels_are_predicted_each_by_itself() -> None:
    marks = np.stack([LABELS, ["film" in text for text in TEXTS]], axis=1).astype(int)
    found = score(MULTI, marks, 2)
    assert found["tfidf"]["f1_macro"] == 1.0
    assert found["majority"]["f1_micro"] < 1.0


def test_numbers_are_predicted_by_the_mean_and_by_ridge_regression() -> None:
    found = score(REGRESSION, LABELS.astype(float), 1)
    assert found["majority"]["mse"] == pytest.approx(LABELS.var())
    assert found["tfidf"]["mse"] < 0.5 * found["majority"]["mse"]


def test_words_of_one_character_count_so_that_chinese_has_words() -> None:
    texts = ["好 片", "坏 片", "好 书", "坏 书"]
    labels = np.array([1, 0, 1, 0])
    fitted = baselines.fit_baselines(SINGLE, texts, labels)
    assert baselines.score_baselines(fitted, SINGLE, 2, texts, labels)["tfidf"]["accuracy"] == 1.0


class Targets:
    """Examples of given targets, -100 where nothing is predicted."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = torch.tensor(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        return {"targets": self.rows[torch.from_numpy(np.asarray(rows))]}


def test_the_unigram_model_is_fitted_to_the_training_targets_with_one_more_of_each() -> None:
    train = Targets([[1, 1, 1, 2], [1, 3, -100, -100]])
    measured = Targets([[1, 2, 4, -100]])
    found = measure_unigram(train, measured)
    counts = Counter(dict.fromkeys(range(5), 1))
    counts.update([1, 1, 1, 2, 1, 3])
    expected = -sum(math.log(counts[token] / counts.total()) for token in (1, 2, 4))
    assert math.isclose(found.nll, expected, rel_tol=1e-12)
    assert (found.hits, found.predictions) == (1, 3)
