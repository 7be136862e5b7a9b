"""A small model with dropout for each objective, with examples of unlike lengths."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmkit.config.schema import LoraConfig
from llmkit.data.examples import packs
from llmkit.data.examples.blocks import MaskedBlocks, Vocabulary
from llmkit.data.examples.packs import Responses
from llmkit.models import build, logits, lora, packing
from llmkit.training.tasks.causal import CausalLoss
from llmkit.training.tasks.masked import MaskedLoss
from llmkit.training.tasks.responses.completion import CompletionLoss
from tests.jobs import token_file
from tests.training.conftest import BLOCK, VOCABULARY, tiny_model
from tests.training.tasks.labels import test_classification as classification
from tests.training.tasks.labels import test_tagging as tagging
from tests.training.tasks.preference import test_preference_loss as preference

OBJECTIVES = (
    "causal", "masked", "classification", "token_classification", "completion", "lora",
    "preference",
)  # fmt: skip

OWN = {"hidden_dropout": 0.1, "attention_dropout": 0.1}


def parts(objective: str) -> dict[str, Any]:
    """What a trial of an objective is made of."""
    return {"validation": None, **globals()[f"_{objective}"]()}


def _causal() -> dict[str, Any]:
    return {"model": tiny_model("gpt2"), "task": CausalLoss(100, linear_head=True)}


def _masked() -> dict[str, Any]:
    chance = np.random.default_rng(0)
    file = token_file([chance.integers(4, VOCABULARY, n).tolist() for n in range(3, 40)], 0, 1)
    shape = {"hidden_size": 32, "num_hidden_layers": 2}
    special = {"pad_token_id": 3}
    config = build.model_config("bert", shape, VOCABULARY, 16, special, build.MASKED_MODEL)
    model = build.new_model(config, 0, build.MASKED_MODEL)
    vocabulary = Vocabulary(2, 3, np.arange(VOCABULARY) < 4)
    examples = MaskedBlocks(file, 16, True, 0.3, vocabulary, seed="0")
    task = MaskedLoss(logits.split_head(model), packing.document_masks(model))
    return {"model": model, "task": task, "examples": examples}


def _classification() -> dict[str, Any]:
    """Padded to the longest text of each micro-batch."""
    task, examples = classification.task(), classification.examples()
    return {"model": classification.small(), "task": task, "examples": examples}


def _token_classification() -> dict[str, Any]:
    """Words in windows, with other numbers of them in each."""
    return {"model": tagging.small(), "task": tagging.task(), "examples": tagging.examples()}


def _completion() -> dict[str, Any]:
    """Packed, so that conversations of one row do not see each other."""
    model = tiny_model("transformer", **OWN)
    return {"model": model, "task": CompletionLoss(linear_head=True), "examples": _conversations()}


def _lora() -> dict[str, Any]:
    model = tiny_model("llama", attention_dropout=0.1)
    lora.attach(model, LoraConfig(r=4, dropout=0.1), seed=0)
    return {"model": model, "task": CompletionLoss(linear_head=True), "examples": _conversations()}


def _preference() -> dict[str, Any]:
    model = tiny_model("transformer", **OWN)
    return {"model": model, "task": preference.loss(), "examples": preference.pairs(40)}


def _conversations() -> packs.Packs:
    chance = np.random.default_rng(0)
    lengths = chance.integers(3, BLOCK, 90)
    starts = np.cumsum([0, *lengths])
    scored = chance.random(starts[-1]) < 0.4
    scored[starts[:-1]], scored[starts[1:] - 1] = False, True
    ids = chance.integers(1, VOCABULARY, starts[-1]).astype(np.int32)
    return packs.packed(Responses(ids, scored, starts, lengths, (), 0, BLOCK), BLOCK, 0)
