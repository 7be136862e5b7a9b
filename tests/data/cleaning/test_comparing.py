"""Words of any script."""

# ruff: noqa: RUF001 (letters of several scripts are meant)
from __future__ import annotations

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.cleaning.comparing import compared_words, runs_of_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't  STOP_me, 42!", ["don", "t", "stop", "me", "42"]),
        ("Straße ＷＩＤＥ café", ["strasse", "wide", "café"]),
        ("人人生而 free", ["人", "人", "生", "而", "free"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("Все люди", ["все", "люди"]),
        ("— … !", []),
    ],
)
def test_words_are_letters_and_digits_or_characters_of_scripts_without_spaces(
    text: str, words: list[str]
) -> None:
    assert compared_words(text) == words


@given(st.text(st.characters(max_codepoint=0x2FF), max_size=60))
def test_the_fast_ways_find_what_the_general_pattern_finds(text: str) -> None:
    from unicodedata import normalize

    folded = normalize("NFKC", text).casefold()
    general = regex.findall(r"[\p{L}\p{M}\p{N}]+", folded)
    if not regex.search(r"[\p{M}\p{No}]", folded):
        assert compared_words(text) == general


def test_runs_overlap_and_a_short_text_is_one() -> None:
    assert runs_of_words(["a", "b", "c", "d"]) == ["a b c", "b c d"]
    assert runs_of_words(["a", "b"]) == ["a b"]
    assert runs_of_words([]) == []
