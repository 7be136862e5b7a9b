"""Text as it comes: whole characters, nothing of a stop string, and in sum the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmkit.inference.detokenizer import Detokenizer
from llmkit.models import tokenizer as tokenizers
from tests.jobs import SHARED

from .conftest import TEXTS

BPE = tokenizers.train_bpe(TEXTS, 300)


def pieces(
    tokenizer: PreTrainedTokenizerFast, prompt: list[int], ids: list[int], stop: tuple[str, ...]
) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(tokenizer, prompt, stop)
    said = []
    for token in ids:
        detokenizer.append(token)
        if detokenizer.stopped:
            break
        said.append(detokenizer.new_text(final=False))
    detokenizer.close()
    return [*said, detokenizer.new_text(final=True)], detokenizer


@given(st.text(min_size=1), st.text())
def test_chinese_and_emoji_never_break(text: str, before: str) -> None:
    prompt = BPE.encode(before, split_special_tokens=True)
    ids = BPE.encode(text, split_special_tokens=True)
    said, detokenizer = pieces(BPE, prompt, ids, ())
    assert "".join(said) == detokenizer.text == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in said)


@given(st.lists(st.integers(1, len(BPE) - 1), max_size=40))
def test_any_tokens_give_what_decoding_them_at_once_gives(ids: list[int]) -> None:
    said, _ = pieces(BPE, [], ids, ())
    assert "".join(said) == BPE.decode(ids)


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string_and_nothing_of_it_is_said(
    text: str, stop: list[str]
) -> None:
    ids = [token for c in text for token in BPE.encode(c)]
    said, detokenizer = pieces(BPE, [], ids, tuple(stop))
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(s) for s in stop)]
    if not ends:
        assert detokenizer.text == text
    else:
        begun = text[: ends[0]]
        assert detokenizer.text == begun[: min(begun.find(s) for s in stop if s in begun)]
    assert detokenizer.stopped == bool(ends)
    assert "".join(said) == detokenizer.text


@pytest.mark.parametrize("name", ["models/tinystories-656k", "tokenizers/gpt2"])
def test_spaces_are_those_of_the_whole_text(name: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip("the shared test data is not here")
    tokenizer = AutoTokenizer.from_pretrained(SHARED / name)
    ids = tokenizer("Once upon a time, there was a little dog. It was happy!")["input_ids"]
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    for cut in range(1, len(ids)):
        said, _ = pieces(tokenizer, ids[:cut], ids[cut:], ())
        before = tokenizer.decode(
            ids[:cut], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert before + "".join(said) == whole
