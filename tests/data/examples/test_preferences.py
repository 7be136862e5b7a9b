"""Pairs of responses as batches: which rows they hold, and what truncation leaves of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from llmkit.data.examples.preferences import EncodedPairs, encode_pairs
from llmkit.models import tokenizer

ASKED, ENOUGH = "what is it?", 1000
TEXTS = [
    ((ASKED, " a good answer"), (ASKED, " no")),
    (("?", "yes"), ("?", "a worse and longer answer")),
    ((ASKED * 3, "b"), (ASKED * 3, "c")),
]


@pytest.fixture(scope="module")
def own() -> PreTrainedTokenizerFast:
    return tokenizer.train_bpe([ASKED * 20 + "a good answer no yes a worse and longer answer"], 300)


def encoded(own: PreTrainedTokenizerFast, length: int = ENOUGH) -> EncodedPairs:
    return encode_pairs(own, TEXTS, length, pad_id=0)


def test_a_batch_holds_chosen_and_rejected_responses_alternately(own) -> None:
    found = encoded(own)
    batch = found.batch([2, -1, 0])
    assert batch["pairs"].tolist() == [True, False, True]
    for row, (pair, side) in {0: (2, 0), 1: (2, 1), 4: (0, 0), 5: (0, 1)}.items():
        whole = own("".join(TEXTS[pair][side]), add_special_tokens=False)["input_ids"]
        said = own(TEXTS[pair][side][1], add_special_tokens=False)["input_ids"]
        assert batch["input_ids"][row, : len(whole)].tolist() == whole
        targets = batch["targets"][row]
        assert targets[targets != -100].tolist() == said
        assert found.scored[pair, side] == len(said)
    assert (batch["targets"][2:4] == -100).all()
    assert not batch["real"][2:4].any()


def test_the_reference_follows_its_pair(own) -> None:
    found = encoded(own)
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    known = EncodedPairs(found.responses, found.numbers, (), 0, values)
    assert known.batch([1, -1, 0])["reference"].tolist() == [[2, 3], [0, 0], [0, 1]]
    assert torch.equal(found.batch([1])["reference"], torch.zeros(1, 2))


def test_pairs_that_truncation_spoils_are_skipped(own) -> None:
    long = len(own(ASKED * 3, add_special_tokens=False)["input_ids"])
    assert encoded(own).left_out == ()
    short = encoded(own, long)  # the third pair keeps no token of its responses
    assert (short.left_out, short.numbers.tolist()) == ((2,), [0, 1])
    assert short.uncut[2] == long + 1
    same = encode_pairs(own, [((ASKED, "aab"), (ASKED, "aac")), TEXTS[0]], long // 3 + 1, 0)
    assert same.left_out == (0,)
    assert len(same) == 1


def test_lengths_and_counts_are_those_of_pairs(own) -> None:
    found = encoded(own)
    assert len(found) == found.count([0, 1, 2, -1]) == 3
    sizes = [
        max(len(own("".join(each), add_special_tokens=False)["input_ids"]) for each in pair)
        for pair in TEXTS
    ]
    assert found.lengths.tolist() == sizes
    assert list(found.longest_first()) == sorted(range(3), key=lambda n: -sizes[n])


def test_both_responses_follow_the_same_ids_of_the_prompt(own) -> None:
    # A token may span the end of the prompt and the beginning of one response only.
    found = encode_pairs(own, [(("what is i", "t? yes"), ("what is i", " no"))], ENOUGH, 0)
    prompt = own("what is i", add_special_tokens=False)["input_ids"]
    ids = found.batch([0])["input_ids"]
    assert ids[:, : len(prompt)].tolist() == [prompt, prompt]
