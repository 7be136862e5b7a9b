"""Labels that are probably wrong."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from llmkit.errors import DataError
from llmkit.evaluation.labels.label_errors import confident_labels, suspected_rows
from tests.dirty import prose


def test_planted_errors_are_found_by_held_out_probabilities() -> None:
    texts = [text for seed in range(4) for text in prose(60, seed, words=15)]
    right = np.repeat(np.arange(4), 60)
    chance = np.random.default_rng(0)
    wrong = chance.choice(240, 24, replace=False)
    labels = right.copy()
    labels[wrong] = (right[wrong] + chance.integers(1, 4, 24)) % 4
    features = TfidfVectorizer().fit_transform(texts)
    held_out = cross_val_predict(
        LogisticRegression(C=10), features, labels, cv=5, method="predict_proba"
    )
    found = np.flatnonzero((likely := confident_labels(labels, held_out)) != labels)
    found = found[likely[found] >= 0]
    assert len(set(found) & set(wrong)) >= 0.75 * 24
    assert len(set(found) - set(wrong)) <= 0.1 * 24
    assert (likely[wrong] == right[wrong]).mean() > 0.75


def test_a_class_is_judged_by_the_mean_of_rows_with_its_label() -> None:
    # The model is unsure of class 1 even where it is right, so 0.4 is much for it.
    probabilities = np.array([[0.9, 0.1], [0.95, 0.05], [0.6, 0.4], [0.65, 0.35], [0.62, 0.38]])
    labels = np.array([0, 0, 1, 1, 0])
    assert confident_labels(labels, probabilities).tolist() == [0, 0, 1, -1, 1]


def row(number: int, label: object, *probabilities: float) -> dict[str, object]:
    chances = dict(zip("ab", probabilities, strict=True))
    return {"file": "x", "row": number, "text": "t", "label": label, "probabilities": chances}


def test_the_surest_come_first_with_what_they_should_be() -> None:
    rows = [row(1, "a", 0.9, 0.1), row(2, "a", 0.3, 0.7), row(3, "b", 0.1, 0.9),
            row(4, "a", 0.05, 0.95), row(5, "b", 0.5, 0.5)]  # fmt: skip
    found = suspected_rows(rows)
    # Class a is likely from (0.9 + 0.3 + 0.05) / 3 on, and class b from 0.7 on.
    assert [(each["row"], each["label"], each["suggested"]) for each in found] == [
        (4, "a", "b"),
        (2, "a", "b"),
        (5, "b", "a"),
    ]
    assert suspected_rows([]) == []


def test_rows_with_several_labels_are_refused() -> None:
    with pytest.raises(DataError, match="one label"):
        suspected_rows([row(1, ["a"], 0.5, 0.5)])
