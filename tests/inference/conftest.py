"""Tiny models with random weights, a byte-level tokenizer, and prompts of several lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.schema import GenerationConfig
from llmkit.inference import generate, prompts
from llmkit.inference.batching import Engine
from llmkit.inference.generated import Sample
from llmkit.inference.prompts import Prompt
from llmkit.inference.requests import PromptRequest
from llmkit.models import build, tokenizer

TEXTS = (
    "Once", "The cat sat on the mat, and the dog", "A", "one two three four five six seven",
    "Why is the sky so blue", "Yes", "a b c", "the the the the the the the the the the",
    "0 1 2", "Lily and Tom went to the park to play with a big red ball", "Hm", "to be or not",
    "x", "What", "It was a dark night", "In the beginning there was a word",
)  # fmt: skip
"""Sixteen prompts of mixed length."""


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerFast:
    return tokenizer.train_bpe(TEXTS, 300)


@pytest.fixture(scope="session")
def tiny(bpe: PreTrainedTokenizerFast) -> Callable[..., PreTrainedModel]:
    """Models with random weights, scaled up so that their distributions are far from flat."""

    def make(architecture: str = "llama", sharpness: float = 20.0, **settings: Any) -> Any:
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **settings}
        special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        config = build.model_config(architecture, shape, len(bpe), 96, special)
        model = build.causal_model(config, seed=0).eval()
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(sharpness)
        return model

    return make


@pytest.fixture(scope="session")
def llama(tiny: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return tiny("llama")


@pytest.fixture(scope="session")
def ask(bpe: PreTrainedTokenizerFast) -> Callable[..., list[Sample]]:
    """The samples of texts, in order."""

    def make(
        model: PreTrainedModel, texts: Sequence[str] = TEXTS, seed: int = 0, **settings: Any
    ) -> list[Sample]:
        chosen = GenerationConfig(**settings)
        engine = Engine(model, bpe, chosen.micro_batch_size)
        prompts = encoded(texts, model, bpe, chosen, seed)
        return list(generate.generate_samples(engine, prompts, engine.sampler(chosen)))

    return make


def encoded(
    texts: Sequence[str],
    model: PreTrainedModel,
    bpe: PreTrainedTokenizerFast,
    settings: GenerationConfig,
    seed: int = 0,
) -> list[Prompt]:
    requests = [PromptRequest(text, f"test:{number}") for number, text in enumerate(texts)]
    return prompts.encode_prompts(requests, bpe, model.config, settings, seed)
