import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.examples.blocks import Blocks
from tests.jobs import token_file

DOCUMENTS = st.lists(st.lists(st.integers(3, 60_000), max_size=9), min_size=1, max_size=8)


@given(DOCUMENTS, st.integers(1, 12), st.sampled_from([0, 1]), st.booleans())
def test_every_token_but_the_first_is_predicted_exactly_once(
    documents: list[list[int]], size: int, closing: int, isolated: bool
) -> None:
    tokens = token_file(documents, 0, closing)
    blocks = Blocks(tokens, size, isolated)
    batch = blocks.batch(range(len(blocks)))
    targets = batch["targets"].flatten()[: len(tokens.ids) - 1].numpy()
    expected = tokens.ids[1:].astype(np.int64)
    if isolated and closing != 0:
        expected[tokens.starts[1:] - 1] = -100
    assert targets.tolist() == expected.tolist()
    assert (batch["targets"].flatten()[len(tokens.ids) - 1 :] == -100).all()
    assert batch["input_ids"].flatten()[: len(tokens.ids) - 1].tolist() == tokens.ids[:-1].tolist()
    assert blocks.count(range(len(blocks))) == (expected != -100).sum()


@given(DOCUMENTS, st.integers(1, 12), st.sampled_from([0, 1]), st.data())
def test_the_count_of_rows_is_the_number_of_targets(
    documents: list[list[int]], size: int, closing: int, data: st.DataObject
) -> None:
    blocks = Blocks(token_file(documents, 0, closing), size)
    rows = data.draw(st.lists(st.integers(-1, len(blocks) - 1)))
    assert blocks.count(rows) == int((blocks.batch(rows)["targets"] != -100).sum())


@given(DOCUMENTS, st.integers(1, 12), st.sampled_from([0, 1]))
def test_positions_begin_again_at_each_document_and_each_block(
    documents: list[list[int]], size: int, closing: int
) -> None:
    tokens = token_file(documents, 0, closing)
    blocks = Blocks(tokens, size)
    batch = blocks.batch(range(len(blocks)))
    position, expected = 0, []
    for place in range(len(blocks) * size):
        position = 0 if place % size == 0 or place in tokens.starts else position + 1
        expected.append(position)
    plain = [place % size for place in range(len(expected))]
    if "position_ids" in batch:
        assert batch["position_ids"].flatten().tolist() == expected
    else:
        assert expected == plain


def test_padding_rows_hold_nothing_to_predict() -> None:
    blocks = Blocks(token_file([[5, 6, 7, 8]], 0, 0), 4)
    batch = blocks.batch([-1, 0])
    assert batch["input_ids"].tolist() == [[0, 0, 0, 0], [0, 5, 6, 7]]
    assert batch["targets"].tolist() == [[-100] * 4, [5, 6, 7, 8]]
    assert batch.pop("real").tolist() == [[False] * 4, [True] * 4]
    assert "real" not in blocks.batch([0])
    assert "position_ids" not in batch
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert all(tensor.is_contiguous() for tensor in batch.values())


def test_without_isolation_the_stream_is_one_text() -> None:
    blocks = Blocks(token_file([[5], [6]], 0, 1), 8, isolate_documents=False)
    batch = blocks.batch([0])
    assert batch["targets"][0].tolist() == [5, 1, 0, 6, 1, -100, -100, -100]
    assert "position_ids" not in batch


def test_a_row_that_does_not_exist_is_refused() -> None:
    with pytest.raises(IndexError):
        Blocks(token_file([[5, 6]], 0, 0), 4).batch([1])
