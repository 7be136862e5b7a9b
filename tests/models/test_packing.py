"""Whether packed documents see each other is a property of the model, not of its weights."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from llmkit.models import build, packing

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def causal(kind: str, **settings) -> PreTrainedModel:
    config = build.model_config(kind, {**SHAPE, **settings}, 61, 64, SPECIAL)
    return build.causal_model(config, 0)


def scaled(model: PreTrainedModel, factor: float) -> PreTrainedModel:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.mul_(factor)
    return model


APART = {
    "llama": {},
    "gpt2": {},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gemma3_text": {"sliding_window": 8},
    "mistral": {"sliding_window": 8},
    "transformer": {},
}
TOGETHER = {
    "jamba": {"num_experts": 2},
    "falcon_h1": {},
    "qwen3_next": {"num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 4},
    "bloom": {},
    "opt": {},
    "recurrent_gemma": {"num_hidden_layers": 3},
}


@pytest.mark.parametrize("factor", [1.0, 0.03, 30.0])
@pytest.mark.parametrize("kind", [*APART, *TOGETHER])
def test_the_answer_does_not_depend_on_the_size_of_the_weights(kind, factor) -> None:
    model = scaled(causal(kind, **{**APART, **TOGETHER}[kind]), factor)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert packing.isolates(model) == (kind in APART)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert all(weight.grad is None for weight in model.parameters())
    assert model.training


def test_a_path_that_zeros_close_is_found() -> None:
    model = causal("jamba", num_experts=2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("mamba.out_proj.weight"):
                weight.zero_()
    assert not packing.isolates(model)
    closed = [w for n, w in model.named_parameters() if n.endswith("mamba.out_proj.weight")]
    assert closed
    assert not any(weight.any() for weight in closed)


@pytest.mark.parametrize("factor", [1.0, 0.03, 30.0])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "roberta"])
def test_encoders_are_kept_apart_by_their_masks_alone(kind, factor) -> None:
    special = {**SPECIAL, "cls_token_id": 0, "sep_token_id": 0}
    config = build.model_config(kind, SHAPE, 61, 64, special, build.MASKED_MODEL)
    model = scaled(build.new_model(config, 0, build.MASKED_MODEL), factor)
    masks = packing.document_masks(model)
    documents = torch.tensor([[1] * 12 + [2] * 20])
    ids = torch.arange(20, 52)[None]
    inputs = masks.inputs(documents)
    assert packing.are_isolated(model, ids, documents[0] - 1, inputs, {})
    assert not packing.are_isolated(model, ids, documents[0] - 1, {}, {})
