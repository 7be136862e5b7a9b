"""Each stage finds what is planted, and harms nothing that is clean, on several kinds of text."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.schema import CleanConfig
from llmkit.data.cleaning.stages import REASONS, Stages
from tests.dirty import SENTENCES, prose, second_corpora

KINDS = [*second_corpora(60), ("prose", prose(60))]
ALL = CleanConfig(
    html=True, unicode=True, pii="mask", languages=("en",), quality="web", lowercase=True
)


@pytest.mark.parametrize(("kind", "documents"), KINDS, ids=[name for name, _ in KINDS])
def test_no_default_stage_harms_clean_text(kind: str, documents: list[str]) -> None:
    stages = Stages(CleanConfig())
    assert stages.names == ["mojibake", "empty", "repeated"]
    for text in documents:
        passed = stages.passed(text)
        assert (passed.text, passed.removal, passed.edits) == (text, None, [])


@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000\n"])
def test_a_text_without_characters_is_removed_as_empty(text: str) -> None:
    removal = Stages(CleanConfig()).passed(text).removal
    assert removal is not None
    assert removal.stage == "empty"


def test_the_reason_is_the_first_stage_that_removes_with_its_value_and_limit() -> None:
    removal = Stages(ALL).passed("buy now\n" * 9).removal
    assert removal is not None
    assert (removal.stage, removal.value, removal.limit) == ("repeated", round(8 / 9, 4), 0.5)


def test_a_removed_language_is_named_beside_those_that_are_kept() -> None:
    stages = Stages(CleanConfig(languages=("en", "zh")))
    assert stages.passed(SENTENCES["zh"]).removal is None
    removal = stages.passed(SENTENCES["ru"]).removal
    assert removal is not None
    assert (removal.stage, removal.value, removal.limit) == ("language", "ru", "en, zh")


def test_changes_say_what_they_were_and_how_many_bytes_they_added() -> None:
    text = "call 555-123-4567 or write to a.b@example.com\r\nnow"
    passed = Stages(CleanConfig(pii="mask", unicode=True)).passed(text)
    assert passed.text == "call <phone> or write to <email>\nnow"
    assert [(edit.stage, edit.value) for edit in passed.edits] == [
        ("unicode", "line ends"),
        ("pii", "1 email, 1 phone"),
    ]
    added = sum(edit.bytes_added for edit in passed.edits)
    assert added == len(passed.text.encode()) - len(text.encode())


def test_stop_words_and_case_are_for_models_that_count_words(tmp_path: Any) -> None:
    (tmp_path / "words.txt").write_text("de\nla\n")
    lower = Stages(CleanConfig(lowercase=True, stop_words="english"))
    assert lower.passed("The Cat sat on THE mat").text == "cat sat mat"
    own = Stages(CleanConfig(stop_words=str(tmp_path / "words.txt")))
    assert own.passed("La casa de la abuela").text == "casa abuela"


def test_lines_are_taken_out_only_where_that_is_asked_for() -> None:
    from llmkit.data.cleaning.lines import line_hash

    line = "Accept all our cookies"
    text = f"first\n  {line} \nlast"
    passed = Stages(CleanConfig(boilerplate=2), {line_hash(line)}).passed(text)
    assert (passed.text, passed.edits[0].value) == ("first\nlast", line)
    assert Stages(CleanConfig(), {line_hash(line)}).passed(text).text == text


@given(st.text(max_size=300))
def test_any_text_passes_and_its_sums_close(text: str) -> None:
    passed = Stages(ALL).passed(text.encode("utf-8", "replace").decode())
    assert all(each.stage in REASONS for each in passed.judgements)
    before, after = (len(each.encode("utf-8", "replace")) for each in (text, passed.text))
    assert before + sum(edit.bytes_added for edit in passed.edits) == after


@pytest.mark.parametrize("seed", range(3))
def test_a_second_pass_over_single_documents_finds_nothing(seed: int) -> None:
    chance = random.Random(seed)
    texts = [*SENTENCES.values(), *prose(20, seed), "mail me: x.y@example.org\r\n", "é\u0301"]
    chance.shuffle(texts)
    stages = Stages(CleanConfig(pii="mask", unicode=True, languages=("en", "de")))
    kept = [each.text for each in map(stages.passed, texts) if not each.removal]
    again = list(map(stages.passed, kept))
    assert [each.text for each in again] == kept
    assert not any(each.removal or each.edits for each in again)
