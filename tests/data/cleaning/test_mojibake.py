"""Mojibake is repaired, and nothing else changes."""

# ruff: noqa: RUF001 (letters of several scripts are meant)
from __future__ import annotations

from pathlib import Path

import pytest
from ftfy import fix_encoding

from llmkit.data.cleaning.mojibake import repaired
from tests.dirty import SENTENCES, mojibake, second_corpora

PLANTED = [text for code, text in SENTENCES.items() if not text.isascii()]


@pytest.mark.parametrize("text", PLANTED)
def test_text_that_was_read_with_a_wrong_encoding_is_restored(text: str) -> None:
    wrong = mojibake(text)
    assert wrong != text
    fixed, change = repaired(wrong)
    assert fixed == text
    before, after = change.split(" -> ")
    assert before in wrong
    assert after in text


def test_a_wrong_line_is_restored_beside_lines_that_are_right() -> None:
    right = 'He said: “naïve café” — &amp; ﬁne ① ｗｉｄｅ \x1b[0m "x"'
    wrong = mojibake("Schöne Grüße")
    assert repaired(f"{right}\n{wrong}")[0] == f"{right}\nSchöne Grüße"


@pytest.mark.parametrize(("kind", "documents"), [*second_corpora(40)])
def test_clean_text_is_unchanged(kind: str, documents: list[str]) -> None:
    assert [repaired(text) for text in documents] == [(text, "") for text in documents]


def test_what_is_skipped_for_speed_is_what_ftfy_leaves_alone(shared: Path) -> None:
    names = ("udhr/vie.utf-8.txt", "udhr/rus.utf-8.txt", "udhr/jpn.utf-8.txt", "tatoeba-en-zh.tsv")
    for name in names:
        lines = (shared / "text" / name).read_text(encoding="utf-8").split("\n")[:400]
        for line in [*lines, *map(mojibake, lines)]:
            assert repaired(line)[0] == fix_encoding(line)
