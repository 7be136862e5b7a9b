"""Samples during training continue text that people can read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from llmkit.data.text.excerpts import VISIBLE, excerpts
from llmkit.data.text.token_file import TokenFile
from llmkit.models.tokenizer import train_bpe
from tests.jobs import token_file

ENGLISH = "Once upon a time there was a small fox, who lived in the wood near the mill. " * 9
CHINESE = "秦川雄帝宅。函谷壯皇居。綺殿千尋起。離宮百雉餘。連甍遙接漢。飛觀迥凌虛。" * 9
THAI = "ปฏิญญาสากลว่าด้วยสิทธิมนุษยชนและมีสิทธิในการบรรลุถึงซึ่งสิทธิทางเศรษฐกิจ" * 9


def found_in(documents: Sequence[str], count: int = 3) -> list[str]:
    tokenizer = train_bpe(documents, 400)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in documents]
    file: TokenFile = token_file(ids, tokenizer.bos_token_id, tokenizer.eos_token_id)
    found = excerpts([file], tokenizer, count)
    assert found == excerpts([file], tokenizer, count)
    return found


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, THAI, "  \n\t\n " + ENGLISH])
@pytest.mark.parametrize("repeats", [1, 20])
def test_excerpts_are_long_enough_and_start_and_end_visibly(text: str, repeats: int) -> None:
    found = found_in([text * repeats])
    assert found
    for each in found:
        assert sum(not c.isspace() for c in each) >= VISIBLE
        assert each == each.strip()
        assert each in text * repeats


@pytest.mark.parametrize("repeats", [1, 20])
def test_words_are_whole_where_a_script_has_spaces(repeats: int) -> None:
    words = set(ENGLISH.split())
    assert all(set(each.split()) <= words for each in found_in([ENGLISH * repeats]))


def test_a_script_without_spaces_is_cut_at_a_character() -> None:
    for each in found_in([CHINESE * 20]):
        assert VISIBLE <= len(each) < 2 * VISIBLE
        assert "\N{REPLACEMENT CHARACTER}" not in each


def test_markup_and_blanks_are_not_prompts() -> None:
    markup = ["<div class='page'><p style='margin:0'><br/>" * 9, "\n \n\t" * 40, "-" * 90]
    assert found_in(markup) == []
    for each in found_in([*markup, ENGLISH]):
        assert each in ENGLISH


def test_short_documents_give_short_excerpts_and_never_the_same_twice() -> None:
    found = found_in(["the cat sat", "a dog ran", "the cat sat"])
    assert found
    assert len(set(found)) == len(found)


def test_excerpts_are_spread_over_files() -> None:
    texts = (ENGLISH, CHINESE, THAI)
    tokenizer = train_bpe(texts, 400)
    files = [
        token_file([tokenizer(text, add_special_tokens=False)["input_ids"]], 0, 0) for text in texts
    ]
    found = excerpts(files, tokenizer)
    assert all(each in text for each, text in zip(found, texts, strict=True))
    assert np.unique(found).size == len(texts)
