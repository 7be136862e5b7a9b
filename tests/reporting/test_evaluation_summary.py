"""The result of an evaluation as it is read: metrics with intervals and baselines come first."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.reporting.console import Console
from llmkit.reporting.evaluation_summary import arrange_evaluation, is_evaluation

TEXT: dict[str, Any] = {
    "command": "evaluate", "model": "runs/a", "documents": 1, "tokens": 1234, "nll": 99.5,
    "perplexity": 12.34567, "bits_per_byte": 2.0,
    "interval": {"level": 0.95, "perplexity": [11.0, 14.0], "over": "9 blocks"},
    "baseline": {"name": "unigram", "perplexity": 300.0}, "protocol": {"window": 16},
    "left_out": {"blank": 2, "undecodable": 0, "lost": 0.014}, "seconds": 61.0,
    "tokens_per_second": 20.2,
}  # fmt: skip
LABELS: dict[str, Any] = {
    "command": "evaluate", "model": "runs/b", "examples": 10, "loss": 0.5, "accuracy": 0.7,
    "intervals": {"accuracy": [0.6, 0.8]}, "protocol": {"precision": "fp32"},
    "per_class": {name: {"f1": 2 / 3, "support": 5} for name in ("no", "yes")},
    "confusion_matrix": [[4, 1], [2, 3]], "worst": [{"row": 3, "loss": 2.0}],
    "baseline": {"majority_of_these_rows": {"accuracy": 0.5}},
}  # fmt: skip


def test_each_metric_has_its_interval_and_baseline() -> None:
    arranged = arrange_evaluation(TEXT)
    assert arranged.tables["metrics"][0] == {
        "": "perplexity", "value": 12.35, "95% interval": "11 to 14", "unigram model": 300.0
    }  # fmt: skip
    assert [row[""] for row in arranged.tables["metrics"]][1:] == [
        "bits per byte", "negative log-likelihood"
    ]  # fmt: skip


def test_a_text_too_short_for_an_interval_has_none() -> None:
    arranged = arrange_evaluation({**TEXT, "interval": None, "baseline": None})
    assert arranged.tables["metrics"][0] == {"": "perplexity", "value": 12.35}


def test_the_heading_counts_what_was_measured_and_what_was_skipped() -> None:
    (heading,) = arrange_evaluation(TEXT).lines
    assert heading == (
        "runs/a: 1 document, 1,234 tokens in 1:01; skipped: 2 blank, 1.40% of letters and digits "
        "unknown to the tokenizer"
    )


def test_a_confusion_matrix_has_the_names_of_its_labels() -> None:
    tables = arrange_evaluation(LABELS).tables
    title = next(name for name in tables if name.startswith("confusion matrix"))
    assert tables[title] == [{"": "no", "no": 4, "yes": 1}, {"": "yes", "no": 2, "yes": 3}]
    assert tables["worst"] == LABELS["worst"]
    assert tables["per class"][0] == {"": "no", "f1": 0.6667, "support": 5}


def test_a_baseline_of_numbers_is_the_mean() -> None:
    rows = {**LABELS, "mse": 4.0, "baseline": {"majority_of_these_rows": {"mse": 5.0}}}
    del rows["per_class"], rows["confusion_matrix"]
    found = {row[""]: row for row in arrange_evaluation(rows).tables["metrics"]}
    assert found["mean squared error"]["always the mean"] == 5.0


@pytest.mark.parametrize(
    ("better", "said"),
    [("a", "a is better than b: bits"), (None, "No clear difference between a and b: bits")],
)
def test_models_are_compared_in_a_sentence(better: str | None, said: str) -> None:
    models = [{**TEXT, "model": name} for name in "ab"]
    row = {"model": "a", "other": "b", "bits_per_byte_difference": -0.1, "low": -0.2, "high": -0.05}
    asked = {"command": "evaluate", "models": models, "comparisons": [{**row, "better": better}]}
    arranged = arrange_evaluation(asked)
    assert list(arranged.tables) == ["metrics of a", "metrics of b"]
    assert arranged.closing[0].startswith(said)
    assert sum(line.startswith("Protocol") for line in arranged.closing) == 1


@pytest.mark.parametrize(
    "figures",
    [
        {"command": "evaluate", "examples": 3, "labels": ["a"]},
        {"command": "evaluate", "tasks": [{"task": "sky"}]},
        {"command": "predict", "protocol": {}},
    ],
)
def test_dry_runs_and_tasks_are_shown_as_they_are(figures: dict[str, Any]) -> None:
    assert not is_evaluation(figures)


def test_the_figures_come_before_the_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    Console().result(LABELS)
    out = capsys.readouterr().out
    places = [out.index(part) for part in ("10 examples", "accuracy", "per class", "Protocol:")]
    assert places == sorted(places)


def test_models_on_too_little_text_for_an_interval_are_still_compared() -> None:
    row = {"model": "a", "other": "b", "bits_per_byte_difference": -0.1, "low": None, "high": None}
    models = [{**TEXT, "model": name} for name in "ab"]
    asked = {"command": "evaluate", "models": models, "comparisons": [{**row, "better": None}]}
    assert arrange_evaluation(asked).closing[0] == (
        "No clear difference between a and b: bits per byte differs by -0.1 (too little text for "
        "an interval)."
    )
