"""Weights of one byte: close to the full ones, at a price in perplexity that is stated."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llmkit.inference.generated import Sample
from llmkit.models.kernels import int8
from tests.inference.conftest import ask, bpe, tiny  # noqa: F401
from tests.jobs import SHARED

STORIES = SHARED / "models" / "tinystories-656k"


@pytest.mark.parametrize("rows", [1, int8.FEW_ROWS, int8.FEW_ROWS + 1])
def test_a_layer_of_int8_weights_is_near_the_full_one(rows: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 48)
    small = int8.Int8Linear(layer.weight.data, layer.bias.data)
    states = torch.randn(2, rows, 64)[:1]
    expected, found = layer(states), small(states.bfloat16()).float()
    assert found.shape == expected.shape
    assert (found - expected).norm() / expected.norm() < 0.015


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_model_of_int8_weights_writes(
    architecture: str,
    tiny: Callable[..., PreTrainedModel],  # noqa: F811
    ask: Callable[..., list[Sample]],  # noqa: F811
) -> None:
    model = int8.quantize(tiny(architecture))
    kinds = {type(module).__name__ for module in model.modules()}
    assert "Int8Linear" in kinds
    assert not kinds & {"Linear", "Conv1D"}
    assert len(ask(model, max_new_tokens=5)) == 16


def perplexity(model: PreTrainedModel) -> float:
    """Of the five stories, each by itself, as the notes beside the data have it."""
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    text = (SHARED / "golden/cs336_bpe/tinystories_sample.txt").read_text(encoding="utf-8")
    loss = tokens = 0.0
    with torch.no_grad():
        for story in filter(None, map(str.strip, text.split("<|endoftext|>"))):
            ids = torch.tensor([tokenizer(story)["input_ids"]])
            logits = model(ids).logits[0, :-1].float()
            loss += float(nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            tokens += ids.shape[1] - 1
    return math.exp(loss / tokens)


@pytest.mark.skipif(not STORIES.is_dir(), reason="the shared test data is not here")
def test_int8_raises_the_perplexity_of_a_real_model_by_less_than_one_percent() -> None:
    full = perplexity(AutoModelForCausalLM.from_pretrained(STORIES).eval())
    small = perplexity(int8.quantize(AutoModelForCausalLM.from_pretrained(STORIES).eval()))
    assert full == pytest.approx(18.464, abs=0.001)
    print(f"perplexity {full:.3f} -> {small:.3f}")
    assert 0.995 < small / full < 1.01
