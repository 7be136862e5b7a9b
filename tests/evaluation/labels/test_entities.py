"""Metrics of entities: those of seqeval, and an alignment that accounts for every entity."""

from __future__ import annotations

import random
import warnings
from itertools import chain

import numpy as np
import pytest
from seqeval import scheme as schemes
from seqeval.metrics import accuracy_score, classification_report
from sklearn import metrics as sklearn

from llmkit.data.records.tagging import tags
from llmkit.data.records.tagging.tags import BILOU, BIO, PLAIN_TAGS, TagSet
from llmkit.evaluation.labels.entities import ScoredTags, figures_of_sums

TYPES = ("LOC", "ORG", "PER")


def random_rows(letters: str, seed: int, n: int = 60) -> list[list[str]]:
    chance = random.Random(seed)
    names = ["O"] * 4 + [f"{letter}-{kind}" for letter in letters for kind in TYPES]
    return [chance.choices(names, k=chance.randint(1, 15)) for _ in range(n)]


def disturbed(rows: list[list[str]], seed: int) -> list[list[str]]:
    """The same rows with a third of the tags replaced."""
    chance, every = random.Random(seed), [tag for row in rows for tag in row]
    return [[chance.choice(every) if chance.random() < 0.3 else tag for tag in row] for row in rows]


def scored(known: TagSet, actual: list[list[str]], predicted: list[list[str]]) -> ScoredTags:
    starts = np.cumsum([0, *map(len, actual)])[:-1]
    return ScoredTags(
        known, tags.flat_tags(known, actual), tags.flat_tags(known, predicted), starts
    )


def pair(letters: str, scheme: str, seed: int) -> tuple[ScoredTags, list, list]:
    actual = random_rows(letters, seed)
    predicted = disturbed(actual, seed + 1)
    known = tags.tag_set(scheme, {tag for row in actual for tag in row})
    return scored(known, actual, predicted), actual, predicted


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("letters", "scheme", "theirs"),
    [("BI", BIO, schemes.IOB2), ("BIES", BILOU, schemes.IOBES), ("BILU", BILOU, schemes.BILOU)],
)
def test_every_figure_is_that_of_seqeval(letters, scheme, theirs, seed) -> None:
    ours, actual, predicted = pair(letters, scheme, 10 * seed)
    figures, per_class = ours.figures(), ours.per_class()
    modes = {"_strict": {"mode": "strict", "scheme": theirs}}
    if letters != "BILU":  # the default mode of seqeval does not know these letters
        modes[""] = {}
    for suffix, mode in modes.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = classification_report(actual, predicted, output_dict=True, **mode)
        for kind in TYPES:
            for name, their_name in (("precision", "precision"), ("recall", "recall"),
                                     ("f1", "f1-score")):  # fmt: skip
                assert per_class[kind][name + suffix] == pytest.approx(report[kind][their_name])
        for name, their_name in (("precision", "precision"), ("recall", "recall"),
                                 ("f1", "f1-score")):  # fmt: skip
            assert figures[name + suffix] == pytest.approx(report["micro avg"][their_name])
        if not suffix:
            assert figures["f1_macro"] == pytest.approx(report["macro avg"]["f1-score"])
            assert {k: v["support"] for k, v in per_class.items()} == {
                kind: report[kind]["support"] for kind in TYPES
            }
    assert figures["accuracy"] == pytest.approx(accuracy_score(actual, predicted))


@pytest.mark.parametrize("seed", range(4))
def test_words_of_a_plain_scheme_are_scored_like_classes(seed: int) -> None:
    chance = random.Random(seed)
    names = ["ADJ", "NOUN", "VERB"]
    rows = [chance.choices(names, k=chance.randint(1, 9)) for _ in range(40)]
    other = disturbed(rows, seed)
    ours = scored(tags.tag_set(PLAIN_TAGS, names), rows, other)
    y, x = list(chain(*rows)), list(chain(*other))
    figures = ours.figures()
    assert figures["accuracy"] == pytest.approx(sklearn.accuracy_score(y, x))
    assert figures["f1_macro"] == pytest.approx(sklearn.f1_score(y, x, average="macro"))
    assert "precision" not in figures
    report = sklearn.classification_report(y, x, output_dict=True)
    for name in names:
        assert ours.per_class()[name]["recall"] == pytest.approx(report[name]["recall"])
    shown, matrix = ours.confusion()
    assert shown == names
    assert matrix == sklearn.confusion_matrix(y, x, labels=names).tolist()


@pytest.mark.parametrize("seed", range(6))
def test_the_alignment_accounts_for_each_entity_once(seed: int) -> None:
    ours, _, _ = pair("BI", BIO, seed)
    actual, predicted = ours.entities
    a, p = ours.alignment
    assert sorted(a[a >= 0].tolist()) == list(range(len(actual)))
    overlapping = {
        (i, j)
        for i, (f, e) in enumerate(zip(actual.first, actual.end, strict=True))
        for j, (g, h) in enumerate(zip(predicted.first, predicted.end, strict=True))
        if f < h and g < e
    }
    for i, j in zip(a.tolist(), p.tolist(), strict=True):
        if i >= 0 and j >= 0:
            assert (i, j) in overlapping
        elif i >= 0:
            assert i not in {x for x, _ in overlapping}
        else:
            assert j not in {y for _, y in overlapping}
    errors = ours.errors()
    assert errors["exact"] == ours.counts()["hits"].sum()
    assert sum(errors.values()) == len(a)
    names, matrix = ours.confusion()
    assert names == [*TYPES, "O"]
    assert np.sum(matrix) == len(a)
    assert np.sum(matrix[:-1]) == len(actual)


def test_what_became_of_entities_is_named() -> None:
    known = tags.tag_set(BIO, {"B-PER", "B-LOC"})
    actual = ["B-PER I-PER O B-LOC O B-PER O O".split()]
    guess = ["B-PER O O B-PER O O O B-LOC".split()]
    ours = scored(known, actual, guess)
    assert ours.errors() == {
        "exact": 0, "wrong_boundaries": 1, "wrong_type": 1, "missed": 1, "spurious": 1,
    }  # fmt: skip
    names, matrix = ours.confusion()
    table = {(a, b): matrix[i][j] for i, a in enumerate(names) for j, b in enumerate(names)}
    assert {k: v for k, v in table.items() if v} == {
        ("PER", "PER"): 1, ("LOC", "PER"): 1, ("PER", "O"): 1, ("O", "LOC"): 1,
    }  # fmt: skip


@pytest.mark.parametrize(("letters", "scheme"), [("BI", BIO), ("BILU", BILOU)])
def test_the_sums_of_rows_give_the_figures_of_all(letters: str, scheme: str) -> None:
    ours, _, _ = pair(letters, scheme, 3)
    whole, figures = figures_of_sums(ours.row_sums().sum(0), has_entities=True), ours.figures()
    assert {name: float(value) for name, value in whole.items()} == pytest.approx(
        {name: figures[name] for name in whole}
    )
    for name, (low, high) in ours.intervals(seed=0).items():
        assert low < figures[name] < high, name


def test_nothing_predicted_or_nothing_there_has_figures_of_zero() -> None:
    known = tags.tag_set(BIO, {"B-PER"})
    for actual, guess in ((["O"], ["B-PER"]), (["B-PER"], ["O"]), (["O"], ["O"])):
        ours = scored(known, [actual], [guess])
        assert ours.figures()["f1"] == 0
        assert ours.figures()["f1_strict"] == 0
        assert sum(ours.errors().values()) == (actual != guess)
        assert np.sum(ours.confusion()[1]) == (actual != guess)


def test_entities_end_where_a_row_ends() -> None:
    known = tags.tag_set(BIO, {"B-PER"})
    ours = scored(known, [["B-PER"], ["I-PER"]], [["B-PER"], ["I-PER"]])
    assert ours.counts()["actual"].sum() == 2
