"""Windows of contexts: every token of a context is in one, and answers keep their characters."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from llmkit.data.examples.answers import AnswerWindows, QuestionEncoder
from llmkit.data.examples.encoded import UNLABELLED
from llmkit.data.records.questions import Answer
from llmkit.models import classifier
from llmkit.models import tokenizer as tokenizers
from tests.jobs import WORDS

LENGTH = 24


@lru_cache
def tokenizer() -> Any:
    made = tokenizers.train_bpe_with_frame([" ".join(WORDS)] * 3, 300)
    classifier.separate_pairs(made)
    return made


def rows(n: int = 60, seed: int = 0) -> tuple[list[tuple[str, str]], list[tuple[Answer, ...]]]:
    """Contexts of 1 to 60 words with an answer of 1 to 3 words, or none."""
    chance = random.Random(seed)
    texts, answers = [], []
    for number in range(n):
        words = chance.choices(WORDS, k=chance.randint(1, 60))
        first = chance.randrange(len(words))
        some = words[first : first + chance.randint(1, 3)]
        start = len(" ".join(words[:first])) + (first > 0)
        texts.append((" ".join(chance.choices(WORDS, k=3)), " ".join(words)))
        answers.append((Answer(start, " ".join(some)),) if number % 4 else ())
    return texts, answers


def windows(length: int = LENGTH) -> AnswerWindows:
    return QuestionEncoder(tokenizer(), length).encode(*rows())


def test_the_windows_of_a_row_have_every_token_of_its_context_in_reach() -> None:
    made, (texts, _) = windows(), rows()
    assert int(made.lengths.max()) <= LENGTH
    assert len(made) > len(texts)
    for row, (_, context) in enumerate(texts):
        covered = np.zeros(len(context), bool)
        for window in np.flatnonzero(made.owners == row):
            begin, end = made.encoded.starts[window : window + 2]
            for start, stop in made.offsets[begin:end][made.offsets[begin:end, 0] >= 0]:
                covered[start:stop] = True
        assert all(covered[n] for n, letter in enumerate(context) if letter != " ")


def test_targets_give_the_characters_of_their_answer_back() -> None:
    made, (texts, answers) = windows(), rows()
    assert made.targets is not None
    seen = set()
    for window, (first, last) in enumerate(made.targets.tolist()):
        row = int(made.owners[window])
        if first:
            start, end = made.characters(window, first, last)
            assert texts[row][1][start:end].strip() == answers[row][0].text
            seen.add(row)
        assert (first > 0) == (last > 0)
    # Windows overlap by a quarter, so that short answers are whole in one.
    assert seen == {row for row, found in enumerate(answers) if found}


def test_a_row_that_fits_is_what_the_tokenizer_gives_for_the_pair() -> None:
    made, (texts, _) = windows(512), rows()
    assert len(made) == len(texts)
    for row in (0, 7, 30):
        ids = made.batch([row])["input_ids"][0].tolist()
        assert ids == tokenizer()(*texts[row])["input_ids"]


def test_rows_of_padding_have_no_target_and_no_context() -> None:
    batch = windows().batch([3, -1])
    assert batch["labels"][1].tolist() == [UNLABELLED, UNLABELLED]
    assert batch["windows"].tolist() == [3, -1]
    assert not batch["context"][1].any()
    assert windows().count([3, -1]) == 1


def test_a_long_question_leaves_half_of_a_window_to_the_context() -> None:
    texts = [(" ".join(WORDS * 9), " ".join(WORDS))]
    made = QuestionEncoder(tokenizer(), LENGTH).encode(texts, [()])
    assert made.cut_questions == 1
    assert int(made.lengths.max()) <= LENGTH
    assert int((made.batch([0])["context"] == 1).sum()) == LENGTH // 2
    assert made.length_report()["cut_questions"] == 1


@pytest.mark.parametrize("length", [16, 24, 512])
def test_token_types_tell_the_question_from_the_context(length: int) -> None:
    made = windows(length)
    for window in range(0, len(made), 7):
        batch = made.batch([window])
        if "token_type_ids" in batch:
            assert bool((batch["token_type_ids"][batch["context"] == 1] == 1).all())
