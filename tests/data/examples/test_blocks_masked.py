"""Masked blocks: all text once, masks by their rate, and the same masks again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.examples.blocks import UNSCORED, MaskedBlocks, Vocabulary
from tests.jobs import token_file

from .test_blocks import DOCUMENTS

B, E, MASK, PAD = 0, 1, 2, 60_001
SPECIAL = np.isin(np.arange(60_002), [B, E, MASK, PAD])


def blocks(documents, size=8, p=0.3, seed="0", isolated=True, word_edges=None, closing=E):
    vocabulary = Vocabulary(MASK, PAD, SPECIAL, word_edges)
    return MaskedBlocks(token_file(documents, B, closing), size, isolated, p, vocabulary, seed)


def unmasked(batch) -> np.ndarray:
    """The tokens of a batch with what was hidden put back."""
    ids = batch["input_ids"].numpy().copy()
    row, slot = np.nonzero(batch["targets"].numpy() != UNSCORED)
    ids[row, batch["places"].numpy()[row, slot]] = batch["targets"].numpy()[row, slot]
    return ids


@given(DOCUMENTS, st.integers(3, 12), st.sampled_from([B, E]), st.booleans())
def test_every_token_of_the_text_stands_in_one_row_of_an_epoch(
    documents: list[list[int]], size: int, closing: int, isolated: bool
) -> None:
    made = blocks(documents, size, isolated=isolated, closing=closing)
    ids = unmasked(made.batch(range(len(made))))
    text = [token for document in documents for token in document]
    assert ids[~SPECIAL[ids]].tolist() == text
    assert (ids[:, 0] == B).all()
    for row in ids:
        inside = row[row != PAD]
        assert inside[-1] == closing
        assert len(row) - len(inside) <= 2 or row is ids[-1] or (row == ids[-1]).all()


@given(DOCUMENTS, st.integers(3, 12), st.sampled_from([0.15, 0.5]), st.integers(0, 50))
def test_the_count_is_what_the_batch_predicts(
    documents: list[list[int]], size: int, p: float, first: int
) -> None:
    made = blocks(documents, size, p)
    rows = [-1, first, first + 1, first + len(made)]
    batch = made.batch(rows)
    targets = batch["targets"].numpy()
    assert made.count(rows) == (targets != UNSCORED).sum()
    assert (targets[0] == UNSCORED).all()
    ids = unmasked(batch)
    for row, own in zip(ids[1:], targets[1:], strict=True):
        n_text = (~SPECIAL[row]).sum()
        assert (own != UNSCORED).sum() == (max(1, round(p * n_text)) if n_text else 0)


def test_documents_are_numbered_and_padding_is_none_of_them() -> None:
    made = blocks([[5, 6], [7, 8, 9], [10]], size=8)
    batch = made.batch([0, 1, -1])
    assert unmasked(batch)[:2].tolist() == [[B, 5, 6, E, B, 7, E, PAD], [B, 8, 9, E, B, 10, E, PAD]]
    assert batch["documents"].tolist() == [[1] * 4 + [2] * 3 + [0]] * 2 + [[0] * 8]
    assert "attention_mask" not in batch


def test_documents_that_see_each_other_mask_only_padding() -> None:
    batch = blocks([[5, 6], [7, 8, 9], [10]], isolated=False).batch([0, -1])
    assert batch["attention_mask"].tolist() == [[1] * 7 + [0], [1] + [0] * 7]
    assert "attention_mask" not in blocks([list(range(5, 17))]).batch([1])


LONG = [list(range(3, 50_003))]


def test_of_the_predicted_tokens_eight_in_ten_are_masked_and_one_is_another() -> None:
    made = blocks(LONG, size=258, p=0.15)
    batch = made.batch(range(len(made)))
    targets = batch["targets"].numpy()
    scored = targets != UNSCORED
    shown = np.take_along_axis(batch["input_ids"].numpy(), batch["places"].numpy(), axis=1)[scored]
    n = scored.sum()
    assert n == pytest.approx(0.15 * 50_000, rel=0.02)
    assert (shown == MASK).sum() == pytest.approx(0.8 * n, rel=0.03)
    assert (shown == targets[scored]).sum() == pytest.approx(0.1 * n, rel=0.15)
    others = shown[(shown != MASK) & (shown != targets[scored])]
    assert not SPECIAL[others].any()
    assert len(np.unique(others)) > 0.9 * len(others)


def test_every_token_is_predicted_equally_often() -> None:
    made = blocks([list(range(3, 63))], size=64, p=0.25)
    epochs = 4000
    batch = made.batch(np.arange(epochs))
    counts = np.bincount(batch["targets"].numpy().clip(0).ravel(), minlength=63)[3:63]
    expected = epochs * round(0.25 * 60) / 60
    # Standard deviation: that of a hypergeometric draw, below that of a binomial one.
    assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)


def test_masks_are_drawn_again_each_time_and_the_same_for_the_same_time() -> None:
    made = blocks(LONG, size=34)
    n = len(made)
    first, again, later = (made.batch(rows) for rows in ([3, 9], [9, 3], [3 + n, 9 + n]))
    assert first["places"].tolist() == again["places"].flip(0).tolist()
    assert first["input_ids"].tolist() == again["input_ids"].flip(0).tolist()
    assert (unmasked(first) == unmasked(later)).all()
    assert first["places"].tolist() != later["places"].tolist()
    other = blocks(LONG, size=34, seed="1").batch([3, 9])
    assert other["places"].tolist() != first["places"].tolist()


@pytest.mark.parametrize("told_by", ["first", "last"])
def test_words_are_masked_whole(told_by: str) -> None:
    # Words of three tokens: the first does not continue another, or the third closes its own.
    numbers = np.arange(60_002) % 3
    neither = np.zeros(60_002, dtype=bool)
    edges = {"first": (numbers != 0, neither), "last": (~neither, numbers == 2)}[told_by]
    made = blocks(LONG, size=62, p=0.3, word_edges=edges)
    batch = made.batch(range(len(made)))
    ids, targets = unmasked(batch), batch["targets"].numpy()
    assert made.count(range(len(made))) == (targets != UNSCORED).sum()
    predicted = np.zeros(ids.shape, dtype=bool)
    row, slot = np.nonzero(targets != UNSCORED)
    predicted[row, batch["places"].numpy()[row, slot]] = True
    for line, marks in zip(ids, predicted, strict=True):
        text = ~SPECIAL[line]
        words = np.cumsum((line % 3 == 0) & text)
        for word in np.unique(words[text]):
            assert len(set(marks[text & (words == word)])) == 1
    share = predicted.sum() / (~SPECIAL[ids]).sum()
    assert 0.25 < share <= 0.3
