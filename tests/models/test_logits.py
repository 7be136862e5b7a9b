"""The logits of chosen places are the model's own, whatever it does to them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from llmkit.models.logits import ChosenLogits

SHAPE = {
    "vocab_size": 90, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
DECODER = {**SHAPE, "num_key_value_heads": 1, "head_dim": 8}
CAUSAL = (
    "llama", "gpt2", "qwen3", "mixtral", "gemma2", "cohere", "granite", "gpt_neox", "bloom",
    "mamba",
)  # fmt: skip
MASKED = ("bert", "roberta", "distilbert", "deberta-v2")


def logits_of(kind: str, auto: type, shape: dict[str, int]) -> tuple[ChosenLogits, torch.nn.Module]:
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(kind, **shape), dtype=torch.float32).eval()
    return ChosenLogits(model), model


def agree(logits: ChosenLogits, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> bool:
    chosen = torch.rand(inputs["input_ids"].shape) < 0.4
    with torch.inference_mode():
        found = torch.cat(list(logits.chunks(inputs, chosen)))
        own = model(**inputs).logits[chosen]
    return torch.allclose(found, own, atol=1e-5)


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_model_is_split_and_gives_its_own_logits(kind) -> None:
    shape = SHAPE if kind in ("gpt2", "gpt_neox", "bloom", "mamba") else DECODER
    logits, model = logits_of(kind, AutoModelForCausalLM, shape)
    assert logits.is_split
    assert agree(logits, model, {"input_ids": torch.randint(3, 90, (3, 11))})


@pytest.mark.parametrize("kind", MASKED)
def test_a_masked_model_is_split_and_gives_its_own_logits(kind) -> None:
    logits, model = logits_of(kind, AutoModelForMaskedLM, SHAPE)
    mask = (torch.arange(11) < torch.tensor([[11], [4], [7]])).long()
    assert logits.is_split
    assert agree(
        logits, model, {"input_ids": torch.randint(3, 90, (3, 11)), "attention_mask": mask}
    )


def test_a_model_that_cannot_be_split_gives_its_own_logits_too() -> None:
    logits, model = logits_of("opt", AutoModelForCausalLM, {**SHAPE, "word_embed_proj_dim": 8})
    assert not logits.is_split
    assert agree(logits, model, {"input_ids": torch.randint(3, 90, (3, 11))})


def test_the_model_itself_stays_as_it_was() -> None:
    logits, model = logits_of("llama", AutoModelForCausalLM, DECODER)
    ids = torch.randint(3, 90, (2, 5))
    with torch.inference_mode():
        before = model(ids).logits
        list(logits.chunks({"input_ids": ids}, torch.ones_like(ids, dtype=torch.bool)))
        assert torch.equal(before, model(ids).logits)
    assert model.base_model is model.model


def test_only_a_bounded_number_of_logits_exists_at_once() -> None:
    logits, _ = logits_of("llama", AutoModelForCausalLM, {**DECODER, "vocab_size": 50_000})
    ids = torch.randint(3, 90, (4, 100))
    with torch.inference_mode():
        sizes = [
            len(some)
            for some in logits.chunks({"input_ids": ids}, torch.ones_like(ids, dtype=torch.bool))
        ]
    assert sum(sizes) == 400
    assert max(sizes) == logits.chunk < 400
