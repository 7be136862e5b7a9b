"""What is refused in the files of a model that cannot belong to one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from llmkit.errors import ConfigError, DataError, LlmkitError
from llmkit.models import build
from llmkit.models import tokenizer as tokenizers
from llmkit.models.pretrained import open_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer."""
    directory = tmp_path_factory.mktemp("whole")
    tokenizer = tokenizers.train_bpe(["the cat sat on a mat"] * 9, 300)
    tokenizer.save_pretrained(directory)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 32}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads)
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def edited(whole: Path, directory: Path, file: str, changes: dict[str, Any]) -> str:
    """A copy of the model with other values in one of its files."""
    for path in whole.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    values = json.loads((directory / file).read_text()) | changes
    (directory / file).write_text(json.dumps(values))
    return str(directory)


def built(name: str) -> None:
    """Opens a causal language model and builds one of its config."""
    opened = open_model(name)
    opened.check_causal()
    build.causal_model(opened.config, seed=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 0},
        {"vocab_size": "x"},
        {"hidden_size": None},
        {"hidden_size": -4},
        {"architectures": [3]},
        {"architectures": "LlamaForCausalLM"},
        {"text_config": {"hidden_size": 3}},
        {"model_type": 3},
        {"hidden_act": "nonsense"},
        {"pad_token_id": 99999},
        {"_attn_implementation": "nonsense"},
        {"rope_scaling": {"type": "nonsense"}},
    ],
)
def test_a_config_that_makes_no_sense_is_a_fault_of_the_model_and_no_bug(
    whole: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    name = edited(whole, tmp_path, "config.json", changes)
    with pytest.raises(LlmkitError) as fault:
        built(name)
    assert fault.value.exit_code in (DataError.exit_code, ConfigError.exit_code)


def test_a_tokenizer_whose_limit_is_text_is_refused(whole: Path, tmp_path: Path) -> None:
    name = edited(whole, tmp_path, "tokenizer_config.json", {"model_max_length": "x"})
    with pytest.raises(DataError, match="model_max_length"):
        tokenizers.load_tokenizer(name)
