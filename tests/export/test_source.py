"""What is exported is the named model or expert, whole and finite, or it is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmkit.config.schema import Config
from llmkit.errors import ConfigError, DataError, UsageError
from llmkit.export.source import open_source
from llmkit.models import tokenizer as tokenizers
from llmkit.progress import Watch
from tests import pairs


def saved(directory: Path, value: float) -> Config:
    """A model with one weight of this value."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = value
    model.save_pretrained(directory)
    tokenizers.train_bpe(["a text"], 300).save_pretrained(directory)
    return Config().changed(model={"name_or_path": str(directory)})


def test_a_model_is_loaded_with_its_weights_and_without_memory_for_its_outline(
    tmp_path: Path, watch: Watch
) -> None:
    source = open_source(saved(tmp_path, 0.5), print)
    weights = source.load(watch, print).state_dict()
    outline = source.outline().state_dict()
    assert weights["model.layers.0.mlp.up_proj.weight"][3, 5] == 0.5
    assert {name: each.shape for name, each in weights.items()} == {
        name: each.shape for name, each in outline.items()
    }
    assert all(each.is_meta for each in outline.values())
    assert source.name == tmp_path.name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(
    value: float, tmp_path: Path, watch: Watch
) -> None:
    source = open_source(saved(tmp_path, value), print)
    with pytest.raises(DataError, match=r"layers\.0\.mlp\.up_proj\.weight holds values"):
        source.load(watch, print)


def test_a_model_is_needed() -> None:
    with pytest.raises(UsageError, match="needs a model"):
        open_source(Config(), lambda text: print(text, file=sys.stderr))


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_an_encoder_decoder_model_is_refused_with_what_runs_it(form: str, tmp_path: Path) -> None:
    own = pairs.t5_tokenizer()
    base = pairs.save(pairs.t5(own), own, tmp_path / "t5")
    config = Config().changed(model={"name_or_path": str(base)}, export={"format": form})
    with pytest.raises(ConfigError, match=f"has no {form} form") as fault:
        open_source(config, print)
    assert "llmkit serve" in fault.value.next
