"""Every figure of a classifier against scikit-learn and scipy."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from sklearn import metrics as sklearn

from llmkit import bootstrap
from llmkit.data.records.labels import MULTI, REGRESSION, SINGLE
from llmkit.evaluation.labels import label_metrics
from llmkit.inference.labels import classify

CLASSES = 4
labels_and_predictions = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        arrays.arrays(np.int64, n, elements=st.integers(0, CLASSES - 1)),
        arrays.arrays(np.int64, n, elements=st.integers(0, CLASSES - 1)),
    )
)
label_sets = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        arrays.arrays(np.bool_, (n, CLASSES)), arrays.arrays(np.bool_, (n, CLASSES))
    )
)
quick = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@quick
@given(labels_and_predictions)
def test_single_label_figures_are_those_of_sklearn(both) -> None:
    labels, predicted = both
    found = label_metrics.single_label(label_metrics.count_labels(labels, predicted, CLASSES))
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, predicted))
    for kind in ("macro", "micro", "weighted"):
        expected = sklearn.f1_score(labels, predicted, average=kind, zero_division=0)
        assert found[f"f1_{kind}"] == pytest.approx(expected), kind
    assert found["matthews"] == pytest.approx(
        sklearn.matthews_corrcoef(labels, predicted), abs=1e-9
    )


@quick
@given(label_sets)
def test_multi_label_figures_are_those_of_sklearn(both) -> None:
    labels, predicted = both
    found = label_metrics.multi_label(label_metrics.count_label_sets(labels, predicted))
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, predicted))
    expected = sklearn.f1_score(labels, predicted, average="micro", zero_division=0)
    assert found["f1_micro"] == pytest.approx(expected)
    present = (labels | predicted).any(0)  # a label that never occurs has no F1
    if labels.any():
        for kind in ("macro", "weighted"):
            # One column alone would be read as a problem of two classes.
            expected = sklearn.f1_score(
                labels,
                predicted,
                labels=np.flatnonzero(present),
                average=kind,
                zero_division=0,
            )
            assert found[f"f1_{kind}"] == pytest.approx(expected)


@quick
@given(labels_and_predictions)
def test_each_class_has_the_precision_recall_and_support_of_sklearn(both) -> None:
    labels, predicted = both
    names = [f"c{number}" for number in range(CLASSES)]
    counts = label_metrics.count_labels(labels, predicted, CLASSES)
    found = label_metrics.per_class(counts, names)
    expected = sklearn.precision_recall_fscore_support(
        labels, predicted, labels=range(CLASSES), zero_division=0
    )
    for number, name in enumerate(names):
        assert list(found[name].values()) == pytest.approx([row[number] for row in expected])
    matrix = label_metrics.count_confusions(labels, predicted, CLASSES)
    expected = sklearn.confusion_matrix(labels, predicted, labels=range(CLASSES))
    assert np.array_equal(matrix, expected)


@quick
@given(
    st.integers(2, 40).flatmap(
        lambda n: st.tuples(
            arrays.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0])),
            arrays.arrays(np.bool_, n),
        )
    )
)
def test_roc_auc_is_that_of_sklearn_with_ties_and_none_without_both_kinds(both) -> None:
    scores, positive = both
    found = label_metrics.roc_auc(scores, positive)
    if positive.all() or not positive.any():
        assert found is None
    else:
        assert found == pytest.approx(sklearn.roc_auc_score(positive, scores))


@quick
@given(
    st.integers(3, 40).flatmap(
        lambda n: st.tuples(
            *2 * [arrays.arrays(np.float64, n, elements=st.integers(-5, 5).map(float))]
        )
    )
)
def test_correlations_and_errors_are_those_of_scipy(both) -> None:
    x, y = both
    counts = {
        "rows": len(x), "x": x.sum(), "y": y.sum(), "xx": x @ x, "yy": y @ y, "xy": x @ y,
        "squared": ((x - y) ** 2).sum(), "absolute": abs(x - y).sum(),
    }  # fmt: skip
    found = label_metrics.regression({name: np.asarray(value) for name, value in counts.items()})
    assert found["mse"] == pytest.approx(sklearn.mean_squared_error(y, x))
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(y, x))
    if np.ptp(x) and np.ptp(y):
        expected = stats.pearsonr(x, y).statistic
        assert found["pearson"] == pytest.approx(expected, abs=1e-9)
        assert label_metrics.pearson(x, y) == pytest.approx(expected, abs=1e-9)
        rank = stats.spearmanr(x, y).statistic
        assert label_metrics.spearman(x, y) == pytest.approx(rank, abs=1e-9)


def test_calibration_error_is_the_weighted_gap_of_fifteen_bins() -> None:
    generator = np.random.default_rng(0)
    confidence, correct = generator.random(1000), generator.random(1000) < 0.6
    edges, expected = np.linspace(0, 1, 16), 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    assert label_metrics.calibration_error(confidence, correct) == pytest.approx(expected)


def test_a_score_holds_every_figure_of_its_kind() -> None:
    generator = np.random.default_rng(1)
    logits, labels = generator.normal(size=(200, 3)), generator.integers(0, 3, 200)
    found = label_metrics.score_labels(SINGLE, logits, labels, ["a", "b", "c"])
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert found["loss"] == pytest.approx(sklearn.log_loss(labels, probability))
    expected = sklearn.roc_auc_score(labels, probability, multi_class="ovr")
    assert found["roc_auc"] == pytest.approx(expected)
    low, high = found["intervals"]["accuracy"]
    assert low < found["accuracy"] < high
    assert np.sum(found["confusion_matrix"]) == 200

    sets = generator.random((200, 3)) < 0.4
    found = label_metrics.score_labels(MULTI, logits, sets.astype(int), ["a", "b", "c"])
    assert found["threshold"] == 0.5
    assert found["roc_auc"] == pytest.approx(sklearn.roc_auc_score(sets, logits))
    assert found["f1_macro"] == pytest.approx(sklearn.f1_score(sets, logits >= 0, average="macro"))

    values = logits[:, 0] + generator.normal(size=200)
    found = label_metrics.score_labels(REGRESSION, logits[:, :1], values, ["score"])
    assert found["spearman"] == pytest.approx(stats.spearmanr(logits[:, 0], values).statistic)
    assert found["loss"] == found["mse"]


def test_of_two_classes_roc_auc_is_that_of_the_second() -> None:
    generator = np.random.default_rng(2)
    logits, labels = generator.normal(size=(100, 2)), generator.integers(0, 2, 100)
    expected = sklearn.roc_auc_score(labels, logits[:, 1] - logits[:, 0])
    found = label_metrics.score_labels(SINGLE, logits, labels, ["a", "b"])
    assert found["roc_auc"] == pytest.approx(expected)


def test_a_class_without_examples_leaves_roc_auc_out() -> None:
    found = label_metrics.score_labels(
        SINGLE, np.eye(3)[[0, 1, 1]], np.array([0, 1, 1]), ["a", "b", "c"]
    )
    assert "roc_auc" not in found


def test_intervals_are_seeded_and_hold_the_truth_nineteen_times_of_twenty() -> None:
    hits = []
    for seed in range(60):
        correct = np.random.default_rng(seed).random(150) < 0.8

        def figures(rows, correct=correct):
            return {"accuracy": correct[rows].mean()}

        low, high = bootstrap.figure_intervals(figures, 150, seed)["accuracy"]
        hits.append(low <= 0.8 <= high)
        if seed == 0:
            assert bootstrap.figure_intervals(figures, 150, 0)["accuracy"] == (low, high)
    assert 0.85 <= np.mean(hits) <= 1.0


def test_probabilities_stay_finite_for_large_logits() -> None:
    large = np.array([[1e4, -1e4]], dtype=np.float32)
    assert classify.probabilities(SINGLE, large).tolist() == [[1.0, 0.0]]
    with np.errstate(over="raise"):
        assert classify.probabilities(MULTI, large).tolist() == [[1.0, 0.0]]


# --- the libraries give what the definitions give


def ranks_by_definition(values):
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


def log_softmax_by_definition(logits):
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def roc_auc_by_definition(scores, positive):
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return None
    above = ranks_by_definition(scores)[positive].sum() - n_positive * (n_positive + 1) / 2
    return above / (n_positive * n_negative)


FEW_VALUES = st.sampled_from([-3.0, -0.25, 0.0, 0.125, 0.5, 2.0, 700.0]) | st.floats(-50, 50)


@given(st.lists(st.tuples(FEW_VALUES, FEW_VALUES, st.booleans()), min_size=1, max_size=40))
def test_ranks_and_areas_are_those_of_their_definitions(rows) -> None:
    scores, others = (np.array([row[n] for row in rows]) for n in (0, 1))
    positive = np.array([row[2] for row in rows])
    expected = roc_auc_by_definition(scores, positive)
    found = label_metrics.roc_auc(scores, positive)
    assert found == expected if expected is None else abs(found - expected) < 1e-12
    ranked = label_metrics.pearson(ranks_by_definition(scores), ranks_by_definition(others))
    assert abs(label_metrics.spearman(scores, others) - ranked) < 1e-12


@given(st.integers(1, 5), st.data())
def test_probabilities_losses_and_counts_are_those_of_their_definitions(n_classes, data) -> None:
    row = st.lists(FEW_VALUES, min_size=n_classes, max_size=n_classes)
    logits = np.array(data.draw(st.lists(row, min_size=1, max_size=20)))
    number = st.integers(0, n_classes - 1)
    labels = np.array(data.draw(st.lists(number, min_size=len(logits), max_size=len(logits))))
    names = [str(n) for n in range(n_classes)]
    log_probability = log_softmax_by_definition(logits)
    near = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(
        classify.probabilities(SINGLE, logits), np.exp(log_probability), **near
    )
    np.testing.assert_allclose(
        classify.probabilities(MULTI, logits), (1 + np.tanh(logits / 2)) / 2, **near
    )
    found = label_metrics.score_labels(SINGLE, logits, labels, names)
    loss = -log_probability[np.arange(len(labels)), labels].mean()
    assert found["loss"] == pytest.approx(loss, abs=1e-12, rel=1e-12)
    cells = np.bincount(labels * n_classes + logits.argmax(1), minlength=n_classes**2)
    assert found["confusion_matrix"] == cells.reshape(n_classes, n_classes).tolist()


def test_intervals_are_percentiles_of_rows_drawn_by_the_seed() -> None:
    values = np.random.default_rng(1).normal(size=60)
    generator = np.random.default_rng(7)
    means = [values[generator.integers(60, size=60)].mean() for _ in range(1000)]
    found = bootstrap.figure_intervals(lambda rows: {"mean": values[rows].mean()}, 60, 7)
    assert found["mean"] == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=1e-12)
