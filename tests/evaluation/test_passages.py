"""The likelihood of held-out passages: that of plain transformers, on the same bytes everywhere."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmkit.data.examples import packs, subset
from llmkit.data.examples.blocks import Blocks
from llmkit.data.examples.mixture import Mixture
from llmkit.data.text.token_file import TokenFile
from llmkit.evaluation import passages
from llmkit.evaluation.passages import group_size, merged_units
from llmkit.progress import Watch
from llmkit.reporting.held_out import MOST_PASSAGES, HeldOut

from .conftest import byte_level, documents

LONG = " ".join(documents(60, seed=3))


def stream(texts: list[str], tokenizer: Any, text_hash: str = "same") -> TokenFile:
    """The texts as tokens, framed by one id."""
    ids, starts = [0], []
    for text in texts:
        starts.append(len(ids) - 1)
        ids += [*tokenizer(text)["input_ids"], 0]
    sizes = np.array([len(text.encode()) for text in texts])
    return TokenFile(
        ids=np.array(ids, np.uint16), starts=np.array(starts), document_bytes=sizes,
        n_bytes=int(sizes.sum()), opening=0, closing=0, max_id=max(ids), blank=0, undecodable=0,
        lost=0.0, fingerprint=f"{text_hash}{len(tokenizer)}", text_hash=text_hash,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(one_id: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(one_id).eval()


@pytest.fixture(scope="module")
def tokenizer(one_id: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(one_id)


def test_the_sum_is_that_of_plain_transformers(model, tokenizer, watch: Watch) -> None:
    texts = documents(40)
    blocks = Blocks(stream(texts, tokenizer), 16)
    found = passages.text_passages(model, blocks, tokenizer, watch)
    expected, ids = 0.0, torch.tensor(blocks.tokens.ids.astype(np.int64))
    starts = [*blocks.tokens.starts.tolist(), len(ids) - 1]
    with torch.no_grad():
        for first in range(0, len(ids) - 1, 16):  # each piece of a document by itself
            last = min(first + 16, len(ids) - 1)
            cuts = sorted({first, last, *(s for s in starts if first < s < last)})
            for begin, end in itertools.pairwise(cuts):
                logits = model(ids[None, begin:end]).logits[0]
                wanted = ids[begin + 1 : end + 1]
                expected += functional.cross_entropy(logits, wanted, reduction="sum").item()
    assert found.columns["nll"].sum() == pytest.approx(expected, rel=1e-5)
    assert found.columns["predictions"].sum() == len(ids) - 1
    assert found.columns["bytes"].tolist() == [len(text.encode()) for text in texts]


def test_another_tokenizer_and_block_size_give_the_same_units(model, tokenizer, watch) -> None:
    other = byte_level(280)
    found = [
        passages.text_passages(model, Blocks(stream([LONG], each), size), each, watch)
        for each, size in ((tokenizer, 16), (other, 24))
    ]
    assert found[0].content == found[1].content
    for name in ("unit", "bytes"):
        assert (found[0].columns[name] == found[1].columns[name]).all()
    assert found[0].columns["predictions"].sum() != found[1].columns["predictions"].sum()
    assert found[0].differences(found[1])["bits_per_byte"].n_units == len(found[0])


def test_another_text_has_another_content(model, tokenizer, watch) -> None:
    def content(text: str, text_hash: str) -> str:
        blocks = Blocks(stream([text], tokenizer, text_hash), 16)
        return passages.text_passages(model, blocks, tokenizer, watch).content

    assert content(LONG, "one") != content(LONG, "two")


def test_subsets_of_two_sizes_share_their_blocks(model, tokenizer, watch) -> None:
    blocks = Blocks(stream([LONG], tokenizer), 16)
    small, large = (
        passages.text_passages(model, subset.drawn(blocks, n), tokenizer, watch) for n in (8, 20)
    )
    assert small.content == large.content
    assert set(small.columns["unit"]) < set(large.columns["unit"])
    alike = small.differences(large)["loss"]
    assert alike.n_units == 8
    assert alike.value == pytest.approx(0, abs=1e-6)
    per_byte = subset.drawn(blocks, 8)
    expected = small.columns["nll"].sum() / math.log(2) / per_byte.n_bytes
    assert small.figures()["bits_per_byte"] == pytest.approx(expected)


def test_domains_keep_their_names_and_are_never_mixed_up(model, tokenizer, watch) -> None:
    files = {"a": stream([LONG], tokenizer), "b": stream(documents(50), tokenizer)}
    blocks = {name: Blocks(file, 16) for name, file in files.items()}

    def measured(names: str, trained_on: str) -> HeldOut:
        mixture = Mixture({name: blocks[name] for name in names}, trained_on=trained_on)
        return passages.text_passages(model, mixture, tokenizer, watch)

    both, turned = measured("ab", "ab"), measured("ba", "ab")
    for name, part in blocks.items():
        alone = passages.text_passages(model, part, tokenizer, watch)
        assert both.of_domain(name).figures() == pytest.approx(alone.figures())
        assert both.of_domain(name).content == alone.content
    assert both.content == turned.content
    difference = both.differences(turned)["loss"]
    assert difference.n_units == len(both)
    assert (difference.low, difference.high) == pytest.approx((0, 0), abs=1e-6)
    only = measured("ab", "b")
    assert only.figures() == pytest.approx(both.of_domain("b").figures())
    assert only.content == measured("b", "b").content != both.content
    assert only.differences(measured("ba", "b"))["loss"].n_units == len(both.of_domain("b"))


def test_very_many_passages_are_merged_and_none_is_lost() -> None:
    units = np.arange(3 * MOST_PASSAGES + 1)
    every = group_size(len(units), MOST_PASSAGES)
    found = merged_units(units, {"nll": np.ones(len(units))}, every)
    assert len(found["unit"]) <= MOST_PASSAGES
    assert found["nll"].sum() == len(units)
    some = merged_units(units[::7], {"nll": np.ones(len(units[::7]))}, every)
    assert set(some["unit"]) <= set(found["unit"])


def test_packing_changes_no_conversation(model, tokenizer, watch) -> None:
    texts = [(f"{text} ", f"answer {text[:9]}") for text in documents(12, seed=5)]
    responses = packs.encode_responses(tokenizer, texts, max_length=64)
    together = packs.packed(responses, 128, 0)
    assert len(together) < len(responses)
    one, other = (
        passages.response_passages(model, rows, responses.fingerprint, watch)
        for rows in (together, packs.alone(responses, 0))
    )
    assert one.content == other.content
    assert one.columns["nll"] == pytest.approx(other.columns["nll"], rel=1e-4)
    counts = [
        responses.scored[start:end].sum() for start, end in itertools.pairwise(responses.starts)
    ]
    assert one.columns["predictions"].tolist() == counts
