"""What a run gets wrong, as its page shows it: classifiers, and taggers of entities or words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmkit.reporting.evaluation_summary import arrange_evaluation
from llmkit.reporting.page.mistakes import confusions, worst_mistakes
from llmkit.reporting.page.run_page import report_page
from llmkit.reporting.run_record import read_run

ENTITIES = {
    "examples": 4, "words": 30, "loss": 0.2, "f1": 0.7, "precision": 0.7, "recall": 0.7,
    "accuracy": 0.9, "f1_macro": 0.7, "per_class": {"LOC": {}, "PER": {}},
    "confused": ["LOC", "PER", "O"], "confusion_matrix": [[5, 1, 1], [0, 4, 0], [2, 0, 0]],
    "errors": {"exact": 8, "wrong_boundaries": 1, "wrong_type": 1, "missed": 1, "spurious": 2},
    "worst": [{"file": "a/b.conll", "row": 3, "label": "LOC Paris", "predicted": "O", "loss": 2.0,
               "text": "in «Paris»"}],
    "baseline": {"frequent_tag": {"f1": 0.4, "accuracy": 0.8}},
}  # fmt: skip
WORDS = {
    "examples": 4, "words": 12, "loss": 0.2, "accuracy": 0.75, "f1_macro": 0.7,
    "per_class": {"NOUN": {}, "VERB": {}}, "confused": ["NOUN", "VERB"],
    "confusion_matrix": [[5, 1], [2, 4]],
}  # fmt: skip


@pytest.fixture
def shown(make_run) -> Any:
    def made(found: dict[str, Any]) -> tuple[dict[str, Any], str]:
        run = read_run(make_run("run", evaluation_json=json.dumps({"validation": found})))
        [matrix] = confusions(run)
        return matrix, report_page([run])

    return made


def test_the_entities_of_a_tagger_are_counted_with_those_that_are_none(shown) -> None:
    matrix, page = shown(ENTITIES)
    assert matrix["names"] == ["LOC", "PER", "O"]
    assert (matrix["unit"], matrix["rows"], matrix["right"], matrix["wrong"]) == (
        "entities", 13, 8, 5,
    )  # fmt: skip
    assert "8 of 13 entities are labelled correctly, 5 are not" in page
    assert "in «Paris»" in page


def test_the_words_of_a_plain_scheme_are_counted(shown) -> None:
    matrix, page = shown(WORDS)
    assert (matrix["unit"], matrix["rows"], matrix["right"]) == ("words", 12, 9)
    assert "9 of 12 words are labelled correctly" in page


def test_the_rows_of_a_classifier_are_counted(make_run) -> None:
    run = read_run(make_run("run"))
    [matrix] = confusions(run)
    assert (matrix["unit"], matrix["rows"], matrix["right"]) == ("rows", 10, 8)
    assert worst_mistakes(run) == []


def test_an_evaluation_shows_the_matrix_of_entities() -> None:
    figures = {**ENTITIES, "command": "evaluate", "model": "m", "protocol": {"tag_scheme": "bio"}}
    tables = arrange_evaluation(figures).tables
    [rows] = [rows for title, rows in tables.items() if title.startswith("confusion matrix")]
    assert rows[2] == {"": "O", "LOC": 2, "PER": 0, "O": 0}
