"""The language of a text."""

from __future__ import annotations

import pytest

from llmkit.data.cleaning.language import UNKNOWN, language_of
from tests.dirty import SENTENCES, poems


@pytest.mark.parametrize("code", SENTENCES)
def test_the_language_of_a_sentence_is_found(code: str) -> None:
    assert language_of(SENTENCES[code]) == code


def test_a_script_decides_where_a_model_would_guess() -> None:
    assert {language_of(poem) for poem in poems(50)} == {"zh"}
    assert language_of("漢字かな交じり文") == "ja"


@pytest.mark.parametrize("text", ["", "42 + 7", "ok", "x = y"])
def test_a_text_of_few_letters_has_no_language(text: str) -> None:
    assert language_of(text) == UNKNOWN
