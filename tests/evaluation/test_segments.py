"""Segments are the same bytes of the text for every tokenizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.evaluation.segments import byte_lengths, segments_of

from .conftest import byte_level, documents


def stream(texts: list[str], tokenizer: Any) -> Any:
    """The texts as tokens, framed by one id."""
    ids, starts = [0], []
    for text in texts:
        starts.append(len(ids) - 1)
        ids += [*tokenizer(text)["input_ids"], 0]
    sizes = np.array([len(text.encode()) for text in texts])
    return SimpleNamespace(
        ids=np.array(ids, np.uint16), starts=np.array(starts), document_bytes=sizes,
        n_bytes=int(sizes.sum()), opening=0, closing=0,
    )  # fmt: skip


@given(st.text(max_size=200))
def test_lengths_of_a_byte_level_tokenizer_are_exact(text) -> None:
    tokenizer = TOKENIZERS[0]
    ids = tokenizer(text)["input_ids"]
    assert byte_lengths(tokenizer)[ids].sum() == len(text.encode())


TOKENIZERS = [byte_level(size) for size in (320, 260)]


def test_many_documents_are_the_segments() -> None:
    texts = documents(40)
    tokens = stream(texts, TOKENIZERS[0])
    found = segments_of(tokens, byte_lengths(TOKENIZERS[0]))
    assert found.kind == "documents"
    assert (found.n_bytes == tokens.document_bytes).all()
    assert (found.by_document(found.n_bytes) == tokens.document_bytes).all()


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_few_documents_are_cut_into_blocks_of_like_size(tokenizer) -> None:
    texts = ["the cat sat on a mat " * 300, "a", "far away 家 " * 500]
    tokens = stream(texts, tokenizer)
    found = segments_of(tokens, byte_lengths(tokenizer))
    assert found.kind == "blocks"
    assert found.by_document(found.n_bytes) == pytest.approx(tokens.document_bytes)
    # What the blocks' tokens hold is what the blocks are said to hold, to within a token.
    bounds = [*found.begins, len(tokens.ids) - 1]
    lengths = byte_lengths(tokenizer)
    longest = lengths.max()
    for begin, end, size in zip(bounds, bounds[1:], found.n_bytes, strict=False):
        held = lengths[tokens.ids[begin + 1 : end + 1]].sum()
        assert abs(held - size) <= longest


def test_every_tokenizer_has_the_same_segments() -> None:
    texts = ["the cat sat on a mat " * 300, "far away 家 " * 500]
    one, other = (segments_of(stream(texts, each), byte_lengths(each)) for each in TOKENIZERS)
    assert (one.n_bytes == other.n_bytes).all()
    assert len(one.begins) == len(other.begins)
    assert not np.array_equal(one.begins, other.begins)


def test_each_place_belongs_to_the_segment_that_it_is_in() -> None:
    tokens = stream(documents(40), TOKENIZERS[0])
    found = segments_of(tokens, byte_lengths(TOKENIZERS[0]))
    places = np.arange(len(tokens.ids) - 1)
    expected = [max(n for n, start in enumerate(tokens.starts) if start <= p) for p in places]
    assert found.of(places).tolist() == expected
