"""Words of a text: split in any script, joined, marked, and covered by spans."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from llmkit.data.records.tagging import words
from llmkit.data.records.tagging.words import CharacterSpan, MarkedWords


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in words.split_words(text).tolist()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Angela Merkel's", "Angela|Merkel|'|s"),
        ("state-of-the-art, 3.14", "state|-|of|-|the|-|art|,|3|.|14"),
        ("x_1 naïve e\u0301te\u0301", "x_1|naïve|e\u0301te\u0301"),
        ("你好\uff0c世界", "你|好|\uff0c|世|界"),
        ("ab你c", "ab|你|c"),
        ("हिन्दी में", "हिन्दी|में"),
        ("한국어 문장", "한국어|문장"),
        ("👩\u200d👩\u200d👧!", "👩\u200d👩\u200d👧|!"),
        ("\u0645\u06cc\u200c\u062e\u0648", "\u0645\u06cc\u200c\u062e\u0648"),
        ("a\u200bb", "a|b"),
        (" \t\n", ""),
    ],
)
def test_words_are_runs_of_letters_and_each_other_character(text: str, expected: str) -> None:
    assert "|".join(split(text)) == expected


@given(some.text())
def test_words_are_in_order_and_leave_out_only_what_is_not_seen(text: str) -> None:
    found = words.split_words(text)
    assert (found[:, 0] < found[:, 1]).all()
    assert (found[1:, 0] >= found[:-1, 1]).all()
    inside = {n for start, end in found.tolist() for n in range(start, end)}
    left = {text[n] for n in range(len(text)) if n not in inside}
    assert all(each.isspace() or unicodedata.category(each) == "Cf" for each in left)


tokens = some.lists(some.text(alphabet="ab é你\u200b", max_size=4), max_size=6)


@given(tokens, some.data())
def test_joined_tokens_stand_at_their_places(given_tokens: list[str], data) -> None:
    spaced = data.draw(some.lists(some.booleans(), min_size=len(given_tokens),
                                  max_size=len(given_tokens)))  # fmt: skip
    text, places = words.joined_words(given_tokens)
    assert text == " ".join(given_tokens)
    assert [text[a:b] for a, b in places.tolist()] == given_tokens
    text, places = words.joined_words(given_tokens, spaced)
    assert [text[a:b] for a, b in places.tolist()] == given_tokens
    assert text.replace(" ", "") == "".join(given_tokens).replace(" ", "")
    if given_tokens and given_tokens[-1]:
        assert text.endswith(given_tokens[-1])


def test_marks_enclose_words_and_move_the_others() -> None:
    text, places = words.joined_words("The cat ate the fish .".split())
    marked, moved = words.marked_text(text, places, MarkedWords(2, 3))
    assert marked == "The cat << ate >> the fish ."
    assert [marked[a:b] for a, b in moved.tolist()] == text.split()
    assert words.unmarked_text(marked) == text


def test_the_words_of_a_span_are_those_that_it_touches() -> None:
    text = "Angela Merkel's visit"
    found = words.split_words(text)
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            touched = [n for n, (a, b) in enumerate(found.tolist()) if a < end and start < b]
            first, after = words.words_within(found, start, end)
            assert list(range(first, after)) == touched


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([(0, 6), (7, 13)], None),
        ([(0, 50)], "outside of the text of 19 characters"),
        ([(-2, 3)], "outside"),
        ([(5, 3)], "outside"),
        ([(6, 7)], "holds no word"),
        ([(3, 3)], "holds no word"),
        ([(0, 6), (3, 13)], "the span 3-13 (X) overlaps 0-6 (X)"),
        ([(14, 18)], "cuts a character at 18"),
        ([(18, 19)], "cuts a character at 18"),
    ],
)
def test_a_span_that_cannot_be_read_is_named(spans, said) -> None:
    text = "Angela Merkel cafe\u0301"
    faults = list(words.span_faults(text, [CharacterSpan(a, b, "X") for a, b in spans]))
    assert bool(faults) == bool(said)
    assert not said or said in faults[0]


def test_a_span_loses_the_white_space_at_its_ends() -> None:
    assert words.stripped_span("a  bc  d", CharacterSpan(1, 7, "X")) == CharacterSpan(3, 5, "X")


def test_no_text_has_no_words() -> None:
    assert words.split_words("").shape == (0, 2)
    text, places = words.joined_words([])
    assert (text, places.shape) == ("", (0, 2))
    assert places.dtype == np.int32
