"""Scoring: shares that add up, batches that fit, memory that does not grow with the text."""

from __future__ import annotations

import tracemalloc
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmkit.errors import ResourceError
from llmkit.evaluation.likelihood import SORTED_ROWS, score_rows
from llmkit.evaluation.scored_rows import CausalRows
from llmkit.evaluation.segments import segments_of
from llmkit.evaluation.windows import ScoringProtocol, Windows
from llmkit.models.logits import ChosenLogits

VOCABULARY = 50


@dataclass(frozen=True)
class Member:
    """One of several processes, whose sums are not added up."""

    rank: int = 0
    count: int = 1
    device = torch.device("cpu")
    precision = "fp32"
    one_model = False

    def autocast(self) -> Any:
        return nullcontext()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


class Cramped(ChosenLogits):
    """A device that holds a few rows only."""

    most = 2

    def chunks(self, inputs, chosen):
        if len(chosen) > self.most:
            raise torch.OutOfMemoryError
        return super().chunks(inputs, chosen)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(shape).eval()


def rows_of(lengths, window=16, stride=16, documents="separate"):
    """Documents of these lengths, and the segments they form."""
    ids = np.random.default_rng(0).integers(1, VOCABULARY, sum(lengths) + len(lengths) + 1)
    starts = np.cumsum([0, *(length + 1 for length in lengths)])
    ids[starts] = 0
    sizes = np.array(lengths)
    tokens = SimpleNamespace(
        ids=ids.astype(np.uint16), starts=starts[:-1], document_bytes=sizes,
        n_bytes=int(sizes.sum()), opening=0, closing=0,
    )  # fmt: skip
    rows = CausalRows(Windows(tokens, ScoringProtocol(window, stride, documents, "document", True)))
    return rows, segments_of(tokens, np.ones(VOCABULARY, np.int64))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_shares_of_several_processes_add_up(model, watch, count) -> None:
    rows, parts = rows_of([3, 40, 9, 77, 1, 30, 12], stride=5)
    logits = ChosenLogits(model)
    whole = score_rows(logits, rows, parts, Member(), 40, watch, keep=20)
    shares = [
        score_rows(logits, rows, parts, Member(r, count), 40, watch, keep=20) for r in range(count)
    ]
    assert sum(each.tokens for each in shares).tolist() == whole.tokens.tolist()
    assert sum(each.nll for each in shares) == pytest.approx(whole.nll, rel=1e-14)
    assert sum(each.frequency for each in shares).tolist() == whole.frequency.tolist()
    # Every process but one has -1 at a place, and adds one less than their number to correct that.
    expected = whole.token_nll + (count - 1) ** 2
    assert sum(each.token_nll for each in shares) == pytest.approx(expected)


def test_rows_that_do_not_fit_together_are_taken_in_halves(model, watch) -> None:
    rows, parts = rows_of([50] * 9)
    whole = score_rows(ChosenLogits(model), rows, parts, Member(), 10_000, watch)
    halves = score_rows(Cramped(model), rows, parts, Member(), 10_000, watch)
    assert halves.nll == pytest.approx(whole.nll, rel=1e-6)
    assert halves.tokens.tolist() == whole.tokens.tolist()


def test_a_row_that_does_not_fit_alone_is_reported_with_its_size(model, watch) -> None:
    rows, parts = rows_of([50])
    cramped = Cramped(model)
    cramped.most = 0
    with pytest.raises(ResourceError, match="window of 16 tokens"):
        score_rows(cramped, rows, parts, Member(), None, watch)


def test_what_is_shown_is_what_is_summed(model, watch) -> None:
    rows, parts = rows_of([30, 20])
    scores = score_rows(ChosenLogits(model), rows, parts, Member(), None, watch, keep=52)
    assert scores.token_nll.sum() == pytest.approx(scores.nll.sum())
    some = score_rows(ChosenLogits(model), rows, parts, Member(), None, watch, keep=10)
    assert some.token_nll == pytest.approx(scores.token_nll[:10])


def peak(model, watch, tokens: int) -> int:
    rows, parts = rows_of([tokens], window=4, stride=4, documents="joined")
    logits = ChosenLogits(model)
    tracemalloc.start()
    try:
        score_rows(logits, rows, parts, Member(), 2048, watch)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_text(model, watch) -> None:
    """The rows that are sorted together are bounded; a text of several such is not larger."""
    small, large = (peak(model, watch, 4 * SORTED_ROWS * times) for times in (2, 8))
    assert large < 1.5 * small
