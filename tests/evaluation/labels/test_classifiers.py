"""Classifiers on rows: labels matched by name, every figure, and the worst mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn import metrics
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from llmkit.config.load import load_config
from llmkit.data.readers.files import Sources
from llmkit.errors import DataError
from llmkit.evaluation.labels import measuring
from llmkit.evaluation.labels.classifiers import ClassifierEvaluation
from llmkit.models.pretrained import compared
from llmkit.reporting.console import Console
from tests.evaluation.conftest import byte_level, documents

NAMES = ("zoo", "ant", "cat")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier whose labels are in no order, with weights large enough to have opinions."""
    return made(tmp_path_factory.mktemp("classifier"), NAMES, "single_label_classification", 0)


def made(directory, names, kind, seed):
    tokenizer = byte_level(300)
    torch.manual_seed(seed)
    shape = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=400, initializer_range=0.5,
        id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)},
        problem_type=kind, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertForSequenceClassification(shape).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Sixty rows with random labels."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    labels = np.random.default_rng(0).choice(NAMES, 60)
    texts = [f"{n} {text[:300]}" for n, text in enumerate(documents(60, seed=4))]
    lines = [
        json.dumps({"text": text, "label": str(label)})
        for text, label in zip(texts, labels, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def measured(processes):
    def measure(path, *models, keys=()):
        first, *others = map(str, models)
        config = load_config("evaluate", None, [
            f"model.name_or_path={first}", f"data.test_files={path}",
            f"evaluation.compare_with={json.dumps(others)}", *keys,
        ]).config  # fmt: skip
        kind, console = ClassifierEvaluation(), Console(quiet=True)
        found = measuring.measure_models(
            kind, config, Sources(config), compared(config), processes, console
        )
        return measuring.result_of_rows(config, found), list(measuring.samples_of_rows(found))

    return measure


def test_a_model_with_damaged_weights_has_no_figures(tmp_path, table, measured) -> None:
    damaged = made(tmp_path, NAMES, "single_label_classification", 0)
    model = BertForSequenceClassification.from_pretrained(damaged)
    with torch.no_grad():
        model.classifier.weight[1, 3] = torch.nan
    model.save_pretrained(damaged)
    with pytest.raises(DataError, match="outputs are NaN or infinite for 60 rows"):
        measured(table, damaged)


def by_hand(model, path):
    """The labels, and the probabilities that plain transformers gives, one row at a time."""
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    with torch.no_grad():
        logits = [network(**tokenizer(row["text"], return_tensors="pt")).logits for row in lines]
    labels = [row["label"] for row in lines]
    return labels, torch.cat(logits).double().softmax(-1).numpy()


def test_the_figures_are_those_of_scikit_learn_on_transformers_outputs(
    measured, classifier, table
) -> None:
    labels, probabilities = by_hand(classifier, table)
    said = [NAMES[number] for number in probabilities.argmax(1)]
    found, _ = measured(table, classifier)
    assert found["examples"] == 60
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, said))
    macro = metrics.f1_score(labels, said, average="macro", zero_division=0)
    assert found["f1_macro"] == pytest.approx(macro)
    matrix = metrics.confusion_matrix(labels, said, labels=NAMES)
    assert found["confusion_matrix"] == matrix.tolist()
    assert set(found["per_class"]) == set(NAMES)
    commonest = max(labels.count(name) for name in NAMES)
    baseline = found["baseline"]["majority_of_these_rows"]
    assert baseline["accuracy"] == pytest.approx(commonest / 60)


def test_the_worst_mistakes_are_those_with_the_least_probability(
    measured, classifier, table
) -> None:
    labels, probabilities = by_hand(classifier, table)
    said = probabilities.argmax(1)
    right = np.array([NAMES.index(label) for label in labels])
    chance = probabilities[np.arange(60), right]
    wrong = [row for row in np.argsort(chance, kind="stable") if said[row] != right[row]]
    found, _ = measured(table, classifier, keys=("evaluation.worst=4",))
    assert [row["row"] for row in found["worst"]] == [row + 1 for row in wrong[:4]]
    assert found["worst"][0]["label"] == labels[wrong[0]]
    assert found["worst"][0]["loss"] == pytest.approx(-np.log(chance[wrong[0]]), rel=1e-4)


def test_every_row_is_logged_with_its_probabilities(measured, classifier, table) -> None:
    _, probabilities = by_hand(classifier, table)
    _, samples = measured(table, classifier)
    assert [row["row"] for row in samples] == list(range(1, 61))
    found = [[row["probabilities"][name] for name in NAMES] for row in samples]
    assert np.array(found) == pytest.approx(probabilities, abs=1e-5)


def test_labels_the_model_does_not_know_are_refused_with_both_sides(
    measured, classifier, tmp_path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nhello,cat\nbye,dog\n")
    with pytest.raises(DataError, match=r"'dog'; it knows 'zoo', 'ant', 'cat'"):
        measured(path, classifier)


def test_a_classifier_does_not_differ_from_itself(measured, classifier, table) -> None:
    found, _ = measured(table, classifier, classifier)
    (row,) = found["comparisons"]
    assert row["accuracy_difference"] == row["low"] == row["high"] == 0
    assert row["better"] is None


def test_classifiers_are_compared_on_the_same_rows(measured, classifier, table, tmp_path) -> None:
    other = made(tmp_path / "other", NAMES[::-1], "single_label_classification", 1)
    found, _ = measured(table, classifier, other)
    one, two = found["models"]
    (row,) = found["comparisons"]
    assert row["accuracy_difference"] == pytest.approx(one["accuracy"] - two["accuracy"])
    assert row["low"] <= row["accuracy_difference"] <= row["high"]


def test_several_labels_and_numbers_have_their_figures_too(measured, tmp_path) -> None:
    several = made(tmp_path / "several", NAMES, "multi_label_classification", 2)
    path = tmp_path / "several.jsonl"
    path.write_text("".join(
        json.dumps({"text": text, "label": "zoo|cat" if n % 2 else "ant"}) + "\n"
        for n, text in enumerate(documents(12))
    ))  # fmt: skip
    found, samples = measured(path, several, keys=("data.label_separator='|'",))
    assert {"f1_micro", "threshold"} <= set(found)
    assert samples[1]["label"] == ["zoo", "cat"]

    number = made(tmp_path / "number", ("score",), "regression", 3)
    path = tmp_path / "number.jsonl"
    path.write_text("".join(
        json.dumps({"text": text, "label": str(n / 2)}) + "\n"
        for n, text in enumerate(documents(12))
    ))  # fmt: skip
    found, samples = measured(path, number)
    assert {"mse", "pearson", "spearman"} <= set(found)
    assert samples[3]["label"] == 1.5
    assert len(found["worst"]) == 10


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ('{"text": 5, "label": "ant"}', "'text' of this row is int"),
        ('{"txt": "a", "label": "ant"}', "no 'text'"),
        ('{"text": "a"', "not JSON"),
        ('{"text": "a", "label": {"ant": 3}}', "a label is text or a number"),
        ('{"text": "a", "label": Infinity}', "this one is inf"),
    ],
)
def test_a_broken_row_is_named_and_not_taken_for_a_missing_label(
    tmp_path, classifier, measured, row: str, what: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "ant"}\n' + row + "\n")
    with pytest.raises(DataError, match=what) as raised:
        measured(path, classifier)
    assert raised.value.where == f"{path}:2"


def test_a_label_column_that_is_there_twice_is_listed(tmp_path, classifier, measured) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label,label\na,ant,cat\nb,cat,ant\n")
    with pytest.raises(DataError, match="no clear label column") as raised:
        measured(path, classifier)
    assert "1 'label', 2 'label'" in raised.value.next


def test_training_rows_of_one_label_leave_the_majority_as_the_only_baseline(
    tmp_path, classifier, table, measured
) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text('{"text": "a", "label": "ant"}\n{"text": "b", "label": "ant"}\n')
    found, _ = measured(table, classifier, keys=[f"data.train_files={train}"])
    assert list(found["baseline"]) == ["majority"]
