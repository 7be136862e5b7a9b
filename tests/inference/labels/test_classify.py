"""What a finished classifier says of texts: right, in order, and the same in any company."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llmkit.data.records.labelled import Row
from llmkit.errors import DataError
from llmkit.inference.labels import classify
from llmkit.inference.labels.classify import Classifier
from llmkit.models import build, classifier
from llmkit.models import tokenizer as tokenizers
from llmkit.models.classifier import ClassifierHead
from llmkit.models.pretrained import open_model

SENTENCE = "the cat sat on a mat and saw how far the little dog had run away from home"
TEXTS = [" ".join(itertools.islice(itertools.cycle(SENTENCE.split()), n % 23)) for n in range(90)]


@pytest.fixture(scope="module", params=["bert", "gpt2", "llama"])
def saved(request, tmp_path_factory):
    """The directory of a small classifier with random weights."""
    directory = tmp_path_factory.mktemp(request.param)
    tokenizer = tokenizers.train_bpe_with_frame(TEXTS, 300)
    config = classifier.new_config(
        request.param, {"hidden_size": 32, "num_hidden_layers": 2}, tokenizer, 16
    )
    ClassifierHead("single_label_classification", ("x", "y", "z")).describe(
        config, tokenizer.pad_token_id
    )
    model = build.classifier(config, seed=0)
    torch.nn.init.normal_(list(model.parameters())[-1])
    tokenizer.model_max_length = 16
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def opened(directory, precision: str = "fp32") -> Classifier:
    return classify.open_classifier(open_model(str(directory)), torch.device("cpu"), precision)


def test_logits_are_those_of_plain_transformers_text_by_text(saved) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    tokenizer = AutoTokenizer.from_pretrained(saved)
    ours = opened(saved).outputs([(text,) for text in TEXTS])
    for text, found in zip(TEXTS, ours, strict=True):
        with torch.no_grad():
            batch = tokenizer(text, truncation=True, return_tensors="pt")
            expected = model(**batch).logits[0].numpy()
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_row_is_the_same_in_whatever_company_it_comes(saved) -> None:
    model, texts = opened(saved), [(text,) for text in TEXTS]
    whole = model.outputs(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = model.outputs([texts[row] for row in order])
    assert np.array_equal(shuffled, whole[order])
    for row in range(0, 90, 7):
        assert np.array_equal(model.outputs([texts[row]])[0], whole[row])


def test_bf16_gives_nearly_the_same_and_nothing_is_nan(saved) -> None:
    texts = [(text,) for text in TEXTS]
    exact, fast = opened(saved).outputs(texts), opened(saved, "bf16").outputs(texts)
    assert np.abs(exact - fast).max() < 0.05 * max(1.0, np.abs(exact).max())


def test_a_language_model_is_not_a_classifier(tmp_path) -> None:
    config = build.model_config("llama", {"hidden_size": 32, "num_hidden_layers": 1}, 64, 8, {})
    build.causal_model(config, 0).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="LlamaForCausalLM, not a classifier"):
        opened(tmp_path)


def row(number: int, **extra: str) -> Row:
    return Row(number, "rows.csv", (TEXTS[number % 90],), None, extra)


def test_predictions_come_in_the_order_of_the_rows_over_all_windows(saved, monkeypatch) -> None:
    monkeypatch.setattr(classify, "WINDOW_ROWS", 16)
    model = opened(saved)
    rows = [row(number, id=str(number)) for number in range(50)]
    windows = list(classify.classify_rows(model, classify.row_windows(rows), ["id"]))
    assert [len(window) for window in windows] == [16, 16, 16, 2]
    found = [each for window in windows for each in window]
    assert [each.columns["id"] for each in found] == [str(number) for number in range(50)]
    assert [each.texts for each in found] == [each.texts for each in rows]
    best = [max(each.probabilities, key=each.probabilities.get) for each in found]
    assert [each.label for each in found] == best
    assert all(abs(sum(each.probabilities.values()) - 1) < 1e-5 for each in found)


def test_windows_are_bounded_by_characters_too() -> None:
    rows = (Row(n, "f", ("x" * (classify.WINDOW_CHARACTERS // 2),), None, {}) for n in range(5))
    assert [len(window) for window in classify.row_windows(rows)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("kind", "names"),
    [("single_label_classification", "abc"), ("multi_label_classification", "abc"),
     ("regression", "a")],
)  # fmt: skip
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_give_no_label(kind: str, names: str, value: float) -> None:
    head = ClassifierHead(kind, tuple(names))
    values = np.array([value, 0.7, 0.9][: len(names)])
    found = classify.prediction_of(head, row(1), values, [])
    assert found.label is None
    assert set(found.probabilities.values()) <= {None}


def test_of_several_labels_those_from_one_half_are_given() -> None:
    head = ClassifierHead("multi_label_classification", ("a", "b", "c"))
    found = classify.prediction_of(head, row(1), np.array([0.5, 0.2, 0.9]), [])
    assert found.label == ["a", "c"]


def test_a_regression_gives_a_number() -> None:
    found = classify.prediction_of(
        ClassifierHead("regression", ("score",)), row(1), np.array([2.5]), []
    )
    assert (found.label, found.probabilities) == (2.5, {})


def test_a_column_that_is_not_there_is_reported_before_the_first_prediction() -> None:
    with pytest.raises(DataError, match="no column 'nr'") as caught:
        classify.check_first_row(iter([row(1, id="7")]), ["nr"])
    assert "row 1" in caught.value.where
    assert "id" in caught.value.next
