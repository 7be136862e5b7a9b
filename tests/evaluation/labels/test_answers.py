"""Scores of answers: those of SQuAD's script, written again here from its definition."""

from __future__ import annotations

import collections
import re
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.records.questions import ANSWERED, UNANSWERED, Answer, Answers, QuestionTable
from llmkit.data.records.tagging.words import CharacterSpan
from llmkit.evaluation.labels import answers
from llmkit.inference.labels.answer import FoundAnswers

TEXTS = st.text(st.sampled_from("aAtheTn.,! -\n1é"), max_size=14)


def squad_normalized(text: str) -> str:
    """normalize_answer of evaluate-v2.0.py, step by step."""
    lowered = text.lower()
    kept = "".join(letter for letter in lowered if letter not in set(string.punctuation))
    spaced = re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", kept)
    return " ".join(spaced.split())


def squad_f1(gold: str, predicted: str) -> float:
    """compute_f1 of evaluate-v2.0.py."""
    gold_words = squad_normalized(gold).split() if gold else []
    words = squad_normalized(predicted).split() if predicted else []
    common = collections.Counter(gold_words) & collections.Counter(words)
    same = sum(common.values())
    if len(gold_words) == 0 or len(words) == 0:
        return int(gold_words == words)
    if same == 0:
        return 0
    precision, recall = 1.0 * same / len(words), 1.0 * same / len(gold_words)
    return (2 * precision * recall) / (precision + recall)


def table(rows: list[list[str]]) -> QuestionTable:
    known = Answers((ANSWERED, UNANSWERED))
    found = [tuple(Answer(0, text) for text in row) for row in rows]
    places = [("a", n) for n in range(len(rows))]
    return QuestionTable([("q", "c")] * len(rows), found, known, places)


@given(TEXTS, st.lists(TEXTS, max_size=3))
def test_exact_match_and_f1_are_those_of_the_script_of_squad(
    predicted: str, gold: list[str]
) -> None:
    kept = [text for text in gold if squad_normalized(text)] or [""]
    exact = max(int(squad_normalized(text) == squad_normalized(predicted)) for text in kept)
    f1 = max(squad_f1(text, predicted) for text in kept)
    assert answers.score_answers(table([gold]), [predicted])[0] == pytest.approx([exact, f1])


def test_figures_are_means_over_all_questions_and_over_those_with_and_without_answer() -> None:
    rows = table([["the cat"], ["a dog ran"], [], []])
    scores = answers.score_answers(rows, ["Cat!", "dog", "", "dog"])
    figures = answers.answer_figures(rows, scores)
    assert figures["exact_match"] == 0.5
    assert figures["f1"] == pytest.approx((1 + 2 / 3 + 1 + 0) / 4)
    assert figures["exact_match_unanswered"] == 0.5
    assert figures["f1_answered"] == pytest.approx((1 + 2 / 3) / 2)
    assert "f1_answered" not in answers.answer_figures(table([["a"]]), scores[:1])


@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.booleans(), st.sampled_from(["cat", "dog"])), min_size=1
    )
)
def test_the_threshold_is_as_good_as_any_and_the_one_nearest_to_0(
    rows: list[tuple[int, bool, str]],
) -> None:
    made = table([["cat"] if answered else [] for _, answered, _ in rows])
    odds = np.array([odds for odds, _, _ in rows], dtype=float)
    spans = [CharacterSpan(0, 3, text) for _, _, text in rows]
    found = FoundAnswers(spans, odds, np.zeros((len(rows), 2)))

    def total(threshold: float) -> float:
        predicted = ["" if odd > threshold else span.label
                     for odd, span in zip(odds, spans, strict=True)]  # fmt: skip
        return float(answers.score_answers(made, predicted)[:, 1].sum())

    chosen = answers.best_threshold(made, found)
    every = {each: total(each) for each in (-9.0, *np.arange(-3.5, 4.0, 0.5), 0.0, 9.0)}
    assert total(chosen) == pytest.approx(max(every.values()))
    if every[0.0] == max(every.values()):
        assert total(chosen) == pytest.approx(every[0.0])
        assert chosen == 0 or abs(chosen) <= 0.5


def test_a_data_set_whose_questions_all_have_answers_has_no_threshold() -> None:
    made = table([["cat"]])
    always = QuestionTable(made.texts, made.answers, Answers((ANSWERED,)), made.places)
    found = FoundAnswers([CharacterSpan(0, 3, "cat")], np.array([5.0]), np.zeros((1, 2)))
    assert answers.best_threshold(always, found) == np.inf
    assert found.texts(np.inf) == ["cat"]


def test_the_nearest_sentence_is_the_baseline() -> None:
    context = "Rain fell. The old cat ran home. Nobody saw it."
    rows = QuestionTable([("Where did the cat run home?", context)], [(Answer(19, "cat"),)],
                         Answers((ANSWERED,)), [("a", 1)])  # fmt: skip
    score = answers.AnswerEvaluation().baselines(None, print)
    assert score is not None
    assert score(rows)["nearest_sentence"]["f1"] == pytest.approx(2 * 1 / (1 + 4))
    assert set(score(rows)) == {"nearest_sentence"}
