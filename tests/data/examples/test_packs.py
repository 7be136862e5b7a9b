"""Packed conversations: nothing lost, nothing seen that is not its own."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from llmkit.data.examples import packs
from llmkit.data.examples.blocks import UNSCORED
from llmkit.data.examples.packs import Responses

PAD = 0


def conversations(lengths: list[int], seed: int = 0) -> Responses:
    """Random ids, of which each but the first is scored or not by chance."""
    chance = np.random.default_rng(seed)
    ids = chance.integers(1, 50, sum(lengths)).astype(np.int32)
    scored = chance.random(sum(lengths)) < 0.5
    starts = np.cumsum([0, *lengths])
    scored[starts[:-1]] = False
    scored[starts[1:] - 1] = True
    return Responses(ids, scored, starts, np.array(lengths), (), 0, max(lengths))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(40, 90))
def test_every_item_goes_into_one_pack_and_none_is_too_full(lengths, size) -> None:
    found = packs.fill(np.array(lengths), size)
    assert sorted(row for pack in found for row in pack) == list(range(len(lengths)))
    filled = [sum(lengths[row] for row in pack) for pack in found]
    assert max(filled) <= size
    assert sum(2 * total <= size for total in filled) <= 1  # any two of those would go together


def test_the_same_lengths_give_the_same_packs() -> None:
    lengths = np.random.default_rng(1).integers(3, 60, 500)
    assert packs.fill(lengths, 64) == packs.fill(lengths.copy(), 64)
    wasted = 64 * len(packs.fill(lengths, 64)) / lengths.sum()
    assert wasted < 1.03


def test_a_batch_holds_each_conversation_whole_with_its_own_positions() -> None:
    given_ = conversations([5, 9, 3, 12, 7, 2])
    rows = packs.packed(given_, 16, PAD)
    batch = rows.batch([*range(len(rows)), -1])
    assert batch["input_ids"].shape == (len(rows) + 1, 16)
    seen = []
    for row in range(len(rows)):
        ids, targets = batch["input_ids"][row], batch["targets"][row]
        places = batch["position_ids"][row]
        begins = [k for k in range(16) if places[k] == 0]
        for begin, end in zip(begins, [*begins[1:], int(rows.lengths[row])], strict=True):
            seen.append(tuple(ids[begin:end].tolist()))
            assert targets[end - 1] == UNSCORED
            follow = ids[begin + 1 : end]
            wanted = targets[begin : end - 1]
            assert ((wanted == follow) | (wanted == UNSCORED)).all()
    whole = [tuple(given_.ids[a:b].tolist()) for a, b in pairwise(given_.starts)]
    assert sorted(seen) == sorted(whole)
    assert int((batch["targets"] != UNSCORED).sum()) == given_.scored.sum() == rows.n_predictions
    assert rows.count([*range(len(rows)), -1]) == rows.n_predictions
    assert (batch["targets"][-1] == UNSCORED).all()


def test_packed_conversations_give_the_losses_that_they_have_alone() -> None:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(shape).eval()
    given_ = conversations([5, 9, 3, 12, 7, 2, 11, 4])

    def loss(rows: packs.Packs) -> float:
        batch = rows.batch(range(len(rows)))
        targets = batch.pop("targets")
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits
        return functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=UNSCORED, reduction="sum"
        ).item()

    together, apart = packs.packed(given_, 24, PAD), packs.alone(given_, PAD)
    assert len(together) < len(apart) == 8
    assert "position_ids" not in apart.batch(range(8))
    assert loss(together) == pytest.approx(loss(apart), rel=1e-6)


def test_a_row_for_each_conversation_is_as_wide_as_its_batch() -> None:
    rows = packs.alone(conversations([5, 9, 3]), PAD)
    assert rows.batch([0, 2])["input_ids"].shape == (2, 5)
    assert rows.longest_first().tolist() == [1, 0, 2]
    assert rows.batch([-1])["input_ids"].shape == (1, 1)
