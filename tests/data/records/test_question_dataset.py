"""Questions as they are read: SQuAD's JSON and columns; answers that do not stand are named."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.load import load_config
from llmkit.data.readers.files import Sources
from llmkit.data.records import question_dataset
from llmkit.data.records.questions import Answer
from llmkit.errors import DataError
from llmkit.progress import Watch

CONTEXT = "Anna ran. Bob saw Anna."


def squad(qas: list[dict[str, Any]], indent: int | None = None) -> str:
    articles = [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": qas}]}]
    return json.dumps({"version": "v2.0", "data": articles}, indent=indent)


def load(path: Path, watch: Watch, *keys: str) -> tuple[Any, list[str]]:
    given = [f"data.train_files={path}", "train.objective=question_answering",
             "data.validation_fraction=0", *keys]  # fmt: skip
    config = load_config("finetune", None, given).config
    said: list[str] = []
    return question_dataset.load_questions(
        config, Sources(config), watch, said.append, said.append
    ), said


ASKED = [
    {"id": "1", "question": "Who ran?", "answers": [{"text": "Anna", "answer_start": 0}]},
    {"id": "2", "question": "Whom did Bob see?",
     "answers": [{"text": "Anna", "answer_start": 18}, {"text": "saw Anna", "answer_start": 14}]},
    {"id": "3", "question": "Who slept?", "is_impossible": True, "answers": [],
     "plausible_answers": [{"text": "Bob", "answer_start": 10}]},
]  # fmt: skip
ANSWERS = [
    (Answer(0, "Anna"),), (Answer(18, "Anna"), Answer(14, "saw Anna")), (),
]  # fmt: skip


@pytest.mark.parametrize("indent", [None, 2])
def test_the_nested_articles_of_squad_are_rows(tmp_path: Path, watch: Watch, indent) -> None:
    path = tmp_path / "train.json"
    path.write_text(squad(ASKED, indent))
    data, _ = load(path, watch)
    assert data.train.texts == [(each["question"], CONTEXT) for each in ASKED]
    assert list(data.train.answers) == ANSWERS
    assert data.labels.classes == ("answered", "unanswered")
    assert data.report["contexts"] == 1


def test_a_first_version_without_impossible_questions_always_has_answers(
    tmp_path: Path, watch: Watch
) -> None:
    path = tmp_path / "train.json"
    path.write_text(squad(ASKED[:2]))
    data, _ = load(path, watch)
    assert data.labels.classes == ("answered",)


def test_columns_hold_answers_as_dicts_lists_or_text_with_a_start(
    tmp_path: Path, watch: Watch
) -> None:
    jsonl, table = tmp_path / "a.jsonl", tmp_path / "b.csv"
    lists = [[{"text": a.text, "answer_start": a.start} for a in each] for each in ANSWERS]
    dicts = [{"text": [a.text for a in each], "answer_start": [a.start for a in each]}
             for each in ANSWERS]  # fmt: skip
    for form in (lists, dicts, [json.dumps(each) for each in dicts], [str(e) for e in dicts]):
        rows = [{"question": each["question"], "context": CONTEXT, "answers": answers}
                for each, answers in zip(ASKED, form, strict=True)]  # fmt: skip
        jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert list(load(jsonl, watch)[0].train.answers) == ANSWERS
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["context", "question", "answer", "answer_start"])
        for each, answers in zip(ASKED, ANSWERS, strict=True):
            first = (answers[0].text, answers[0].start) if answers else ("", "")
            writer.writerow([CONTEXT, each["question"], *first])
    data, _ = load(table, watch)
    assert list(data.train.answers) == [each[:1] for each in ANSWERS]
    assert data.train.texts[0] == ("Who ran?", CONTEXT)


def test_an_answer_without_a_start_is_found_if_it_stands_once(tmp_path: Path, watch: Watch) -> None:
    path = tmp_path / "a.jsonl"
    row = {"question": "Who saw?", "context": CONTEXT, "answers": {"text": ["Bob"]}}
    path.write_text(json.dumps(row) + "\n")
    assert list(load(path, watch)[0].train.answers) == [(Answer(10, "Bob"),)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"text": ["Carl"], "answer_start": [0]}, "'Carl' is not in its context"),
        ({"text": ["Bob"], "answer_start": [9]}, "is at 10 in its context, not at 9"),
        ({"text": ["Anna"]}, "'Anna' occurs 2 times in its context: give its start"),
        ({"text": [" "], "answer_start": [5]}, "an answer is ' '"),
        ({"text": [7], "answer_start": [5]}, "an answer is 7"),
    ],
)
def test_an_answer_that_does_not_stand_is_refused_with_its_row_or_skipped(
    tmp_path: Path, watch: Watch, answer: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "a.jsonl"
    good = {"question": "Who saw?", "context": CONTEXT, "answers": {"text": ["Bob"]}}
    bad = {**good, "answers": answer}
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, bad, good)))
    with pytest.raises(DataError, match=reason.replace("'", ".")) as raised:
        load(path, watch)
    assert raised.value.where == f"{path} row 2"
    assert "bad_answers" in raised.value.next
    data, said = load(path, watch, "data.allow=bad_answers")
    assert len(data.train) == 2
    assert data.report["bad_answers"]["count"] == 1
    assert any("these rows are skipped" in text for text in said)


def test_questions_on_one_context_stay_on_one_side(tmp_path: Path, watch: Watch) -> None:
    path = tmp_path / "a.jsonl"
    answers = {"text": ["Bob"]}
    rows = [{"question": f"Who is {n}-{k}?", "context": f"Bob is {n}.", "answers": answers}
            for n in range(20) for k in range(4)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, _ = load(path, watch, "data.validation_fraction=0.25")
    sides = [{context for _, context in part.texts} for part in (data.train, data.validation)]
    assert not sides[0] & sides[1]
    assert len(data.validation) == 20


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"data": [{"paragraphs": 3}]}', "not the form of SQuAD"),
        ('{"question": "a", "passage": "b", "answers": []}', "question and the context"),
        ('{"question": "a", "context": "b", "reply": "b"}', "which column has the answers"),
        ('{"question": "a", "context": "b", "answers": []}', "nothing to learn"),
    ],
)
def test_files_of_another_form_are_refused(
    tmp_path: Path, watch: Watch, content: str, what: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content + "\n")
    with pytest.raises(DataError, match=what):
        load(path, watch)
