"""Small models, exported once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmkit.export.onnx.checking import open_onnx
from llmkit.export.onnx.forms import OnnxForm, continuing_form, labelling_form
from llmkit.export.onnx.writing import MODEL, write_onnx

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 96, "initializer_range": 0.2,
}  # fmt: skip
NAMES = ("input_ids", "attention_mask", "token_type_ids")
FACTS = {"task": "text-classification", "labels": ["good", "b\u00e4d"]}


@dataclass(frozen=True)
class Written:
    """A model, and the file that it was written to."""

    model: PreTrainedModel
    form: OnnxForm
    path: Path

    def session(self) -> Any:
        return open_onnx(self.path)


def labeller(kind: str = "bert", **settings: Any) -> PreTrainedModel:
    """A random classifier with three labels."""
    torch.manual_seed(0)
    sizes = {**SIZES, "intermediate_size": 48, "num_labels": 3, **settings}
    return AutoModelForSequenceClassification.from_config(CONFIG_MAPPING[kind](**sizes)).eval()


def continuer(kind: str = "llama", **settings: Any) -> PreTrainedModel:
    """A random causal model."""
    torch.manual_seed(0)
    if kind != "gpt2":
        settings = {"intermediate_size": 48, "num_key_value_heads": 2, **settings}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    config = CONFIG_MAPPING[kind](**{**SIZES, **ends, **settings})
    return AutoModelForCausalLM.from_config(config).eval()


def written(
    directory: Path, model: PreTrainedModel, make: Callable[[PreTrainedModel], OnnxForm]
) -> Written:
    form = make(model)
    write_onnx(form, directory / MODEL, FACTS)
    return Written(model, form, directory / MODEL)


@pytest.fixture(scope="session")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A BERT classifier."""
    folder = tmp_path_factory.mktemp("labels")
    return written(folder, labeller(), lambda model: labelling_form(model, NAMES, False))


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A Llama with grouped keys and a tied output layer."""
    folder = tmp_path_factory.mktemp("texts")
    return written(folder, continuer(tie_word_embeddings=True), continuing_form)
