"""A directory of another number type is the model, rounded once, for plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from llmkit.config.schema import Config
from llmkit.errors import ConfigError
from llmkit.export.dense import check_safetensors, export_safetensors
from llmkit.export.source import open_source
from llmkit.models import tokenizer as tokenizers
from llmkit.reporting.console import Console
from llmkit.storage import atomic

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def saved(directory: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(directory)
    tokenizers.train_bpe(["some text"] * 2, 300).save_pretrained(directory)
    return directory


def exported(model: Path, output: Path, type: str) -> dict[str, Any]:
    settings = {"format": "safetensors", "type": type, "output": str(output)}
    config = Config().changed(model={"name_or_path": str(model)}, export=settings)
    source, console = open_source(config, print), Console(quiet=True)
    expected = check_safetensors(source, config)["bytes"]
    found = export_safetensors(source, config, console)
    assert 0 < found["bytes"] - expected < 10_000  # the names
    return found


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_rounded_once_and_nothing_else_changes(
    tied: bool, type: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)).eval()
    source = saved(tmp_path / "model", model)
    found = exported(source, tmp_path / "made", type)
    stored = load_file(tmp_path / "made" / "model.safetensors")
    assert len(stored) == (20 if tied else 21)
    assert found["verified"]["weights"] == 21
    state = model.state_dict()
    assert all(torch.equal(state[name].to(TYPES[type]), each) for name, each in stored.items())
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert made.dtype == TYPES[type]
    ids = torch.tensor([[5, 9, 200, 31]])
    with torch.no_grad():
        distance = (made.float()(input_ids=ids).logits - model(input_ids=ids).logits).abs().max()
    assert (distance == 0) == (type == "f32")
    assert found["verified"]["outputs"]["largest_difference"] < 0.1
    assert made.generation_config.eos_token_id == model.generation_config.eos_token_id
    text = "some other text"
    read = AutoTokenizer.from_pretrained(tmp_path / "made")(text)
    assert read == AutoTokenizer.from_pretrained(source)(text)
    assert atomic.verify(tmp_path / "made")["export"] == "safetensors"


def test_classifiers_keep_their_labels_and_mixtures_their_experts(tmp_path: Path) -> None:
    labels = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
    classifier = LlamaForSequenceClassification(LlamaConfig(**SIZES, **labels))
    exported(saved(tmp_path / "classifier", classifier), tmp_path / "labels", "bf16")
    made = AutoModelForSequenceClassification.from_pretrained(tmp_path / "labels")
    assert made.config.id2label == labels["id2label"]
    assert made.dtype == torch.bfloat16
    mixture = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3))
    exported(saved(tmp_path / "mixture", mixture), tmp_path / "routed", "bf16")
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "routed").state_dict()
    name = "model.layers.1.mlp.experts.down_proj"
    assert torch.equal(state[name], mixture.state_dict()[name].bfloat16())


def test_values_beyond_the_type_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    source = saved(tmp_path / "model", LlamaForCausalLM(LlamaConfig(**SIZES)))
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"][3] = 70000.0
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"model\.norm\.weight holds values beyond"):
        exported(source, tmp_path / "made", "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    exported(source, tmp_path / "made", "bf16")


def test_transformers_reads_the_type_from_the_config(tmp_path: Path) -> None:
    source = saved(tmp_path / "model", LlamaForCausalLM(LlamaConfig(**SIZES)))
    exported(source, tmp_path / "made", "bf16")
    assert json.loads((tmp_path / "made" / "config.json").read_text())["dtype"] == "bfloat16"
