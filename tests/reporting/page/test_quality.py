"""The figures of a run, in words and in tables, beside baselines and with intervals."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from llmkit.reporting.page.quality import figure_tables, quality_in_words
from llmkit.reporting.run_record import RunRecord, read_run
from tests.conftest import MakeRun


def measured(make_run: MakeRun, **validation: Any) -> RunRecord:
    return read_run(make_run(evaluation_json=json.dumps({"validation": validation})))


def test_a_classifier_is_judged_beside_its_baselines(make_run: MakeRun) -> None:
    (text,) = quality_in_words(
        measured(
            make_run, examples=250, accuracy=0.8, f1_macro=0.7, loss=1.0,
            intervals={"accuracy": [0.75, 0.85]},
            baseline={"majority": {"accuracy": 0.5}, "tfidf": {"accuracy": 0.76}},
        )
    )  # fmt: skip
    assert text == (
        "On held-out data of 250 rows, the model is right on 80.0% (95% interval 75.0% to 85.0%) "
        "of the rows. A linear model on TF-IDF has 76.0%, which lies in that interval: there is no "
        "clear difference. Always answering the most frequent label has 50.0%: the model is better."
    )


def test_a_language_model_worse_than_a_unigram_model_is_called_worse(make_run: MakeRun) -> None:
    (text,) = quality_in_words(
        measured(make_run, perplexity=100.0, bits_per_byte=3.0, loss=4.6,
                 baseline={"unigram": {"perplexity": 84.0}})
    )  # fmt: skip
    assert "has a perplexity of 100" in text
    assert "has 84: the model is worse." in text


def test_a_regression_is_compared_with_the_mean(make_run: MakeRun) -> None:
    (text,) = quality_in_words(
        measured(make_run, mae=0.5, pearson=0.9, baseline={"majority": {"mae": 1.5}})
    )
    assert "has a mean absolute error of 0.5. Always answering the mean has 1.5" in text


def test_an_interval_without_width_is_not_an_interval(make_run: MakeRun) -> None:
    run = measured(make_run, accuracy=1.0, f1_macro=1.0, intervals={"accuracy": [1.0, 1.0]})
    assert "interval" not in quality_in_words(run)[0]
    assert next(figure_tables(run))["rows"][0]["interval"] == ""


def test_the_main_figures_come_first_and_counts_are_not_figures(make_run: MakeRun) -> None:
    table = next(
        figure_tables(
            measured(make_run, examples=9, loss=1.0, **{"loss/code": 2.0}, roc_auc=0.9,
                     accuracy=0.8, f1_macro=None)
        )
    )  # fmt: skip
    assert [row["name"] for row in table["rows"]] == ["accuracy", "loss", "ROC AUC"]
    assert table["caption"] == "Held-out data: 9 rows"
    assert table["bars"] is None


def test_test_data_have_their_own_table_and_sentence(make_run: MakeRun) -> None:
    both = {"validation": {"accuracy": 0.9, "f1_macro": 0.9},
            "test": {"examples": 5, "accuracy": 0.8, "f1_macro": 0.8}}  # fmt: skip
    run = read_run(make_run(evaluation_json=json.dumps(both)))
    assert [table["caption"] for table in figure_tables(run)] == [
        "Held-out data", "Test data: 5 rows",
    ]  # fmt: skip
    assert quality_in_words(run)[1].startswith(
        "On test data of 5 rows, the model is right on 80.0%"
    )


@pytest.mark.parametrize("value", [0.8, 250.0])
def test_the_bars_show_the_model_beside_its_baselines(make_run: MakeRun, value: float) -> None:
    run = measured(make_run, mae=value, baseline={"tfidf": {"mae": 2 * value}})
    bars = next(figure_tables(run))["bars"]
    assert f"this model {value:g}, TF-IDF {2 * value:g}" in bars["text"]
    assert bars["svg"].startswith("<svg")


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_figure_that_is_not_finite_is_not_a_figure(
    make_run: MakeRun, value: float | None
) -> None:
    run = measured(make_run, accuracy=value, f1_macro=0.5, baseline={"tfidf": {"f1_macro": value}})
    (text,) = quality_in_words(run)
    assert text == "On held-out data, the model has a macro F1 of 50.0%."
    assert [row["name"] for row in next(figure_tables(run))["rows"]] == ["macro F1"]
