"""The rules for text from web pages name what they measured."""

from __future__ import annotations

import pytest

from llmkit.data.cleaning.comparing import compared_words
from llmkit.data.cleaning.quality import broken_rules

GOOD = "The king went to the forest and saw that the trees have leaves of gold with silver. " * 5


def rules(text: str, language: str = "en") -> dict[str, tuple[float, float]]:
    found = broken_rules(text, text.split("\n"), compared_words(text), language)
    return {name: (value, limit) for name, value, limit in found}


def test_good_prose_breaks_no_rule() -> None:
    assert rules(GOOD) == {}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("too short", "words"),
        ("a b c d e f g " * 20, "mean length of words"),
        (GOOD + "# # # # ... " * 20, "symbols per word"),
        ("\n".join("- " + GOOD for _ in range(3)), "lines with a bullet"),
        ("\n".join(GOOD + "..." for _ in range(3)), "lines that end in an ellipsis"),
        (GOOD + "123 456 789 " * 40, "words with a letter"),
        ("colourless green ideas sleep furiously tonight " * 20, "frequent words"),
    ],
)
def test_each_rule_finds_its_fault(text: str, rule: str) -> None:
    value, limit = rules(text)[rule]
    assert value != limit


def test_without_a_list_of_frequent_words_there_is_no_rule() -> None:
    assert "frequent words" not in rules("colourless green ideas sleep furiously " * 20, "und")
