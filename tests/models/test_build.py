"""New models of many architectures: their settings, built small, packed, saved, read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmkit.errors import ConfigError
from llmkit.models import build, packing, pretrained
from llmkit.models.pretrained import open_model

ARCHITECTURES = ["llama", "gpt2", "qwen3", "mistral", "mixtral", "qwen3_moe", "gpt_neox", "olmo2"]
SPECIAL = {"bos_token_id": 3, "eos_token_id": 3, "pad_token_id": 3}


def small(architecture: str, **settings: object) -> torch.nn.Module:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **settings}
    config = build.model_config(architecture, shape, 70, 16, SPECIAL)
    return build.causal_model(config, seed=1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_documents_do_not_see_each_other(architecture: str) -> None:
    packing.check_isolation(small(architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_model_read_by_plain_transformers_is_the_model(
    architecture: str, tmp_path: Path
) -> None:
    model = small(architecture).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert again.config.eos_token_id == 3


def test_the_same_seed_gives_the_same_weights_and_another_others() -> None:
    first, again = small("llama").state_dict(), small("llama").state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    config = small("llama").config
    other = build.causal_model(config, seed=2).state_dict()
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_a_model_that_lets_documents_see_each_other_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot isolate packed documents"):
        packing.check_isolation(small("bloom"))


@pytest.mark.parametrize(
    ("architecture", "settings", "said"),
    [
        ("lama", {}, "no causal language model"),
        ("llama", {"hiden_size": 3}, "did you mean `model.config.hidden_size`"),
        ("llama", {"hidden_size": 33}, "rejects"),
        ("llama", {"hidden_size": "wide"}, "rejects"),
        ("llama", {"vocab_size": 5}, "the tokenizer has 70 tokens"),
        ("gpt2", {"n_positions": 4}, "exceed the model's 4 positions"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_before_weights_are_made(
    architecture: str, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError) as fault:
        small(architecture, **settings)
    assert said in str(fault.value)


def test_weights_that_are_missing_are_an_error_not_random(tmp_path: Path) -> None:
    model = small("llama")
    model.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    )
    with pytest.raises(Exception, match="missing"):
        pretrained.load_model(open_model(str(tmp_path)))


def test_a_token_is_routed_to_no_more_experts_than_there_are() -> None:
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_experts": 4}  # the default is 8
    model = build.causal_model(build.model_config("qwen3_moe", shape, 61, 16, special), 0)
    assert model.config.num_experts_per_tok == 4
    assert model(torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, 3, 61)


@pytest.mark.parametrize(
    ("given", "name", "said"),
    [
        ({"hidden_sice": 64}, "hidden_sice", "hidden_size"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps", "float"),
        ({"hidden_size": 0}, "hidden_size", "int >= 1"),
        ({"hidden_size": 64.5}, "hidden_size", "int"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "num_key_value_heads", "write 3"),
    ],
)
def test_each_wrong_setting_is_named_with_what_to_write(given, name, said) -> None:
    [(found, *text)] = build.settings_faults("llama", given, [build.LANGUAGE_MODEL])
    assert found == name
    assert said in " ".join(text)


def test_a_size_that_the_heads_do_not_divide_is_refused() -> None:
    [(name, what, instead)] = build.settings_faults(
        "bert", {"hidden_size": 65, "num_attention_heads": 2}, [build.MASKED_MODEL]
    )
    assert name == "hidden_size"
    assert "not a multiple of the 2 attention heads" in what
    assert instead == "write 64, or 1 heads"


@pytest.mark.parametrize("value", [0, 1, 0.5])
def test_whole_numbers_are_floats_where_a_float_is_taken(value) -> None:
    given = {"router_aux_loss_coef": value, "hidden_size": 32}
    assert not (
        build.settings_faults("mixtral", {"router_aux_loss_coef": value}, [build.LANGUAGE_MODEL])
    )
    config = build.model_config("mixtral", given, 50, 16, {})
    assert config.router_aux_loss_coef == float(value)
    assert isinstance(config.router_aux_loss_coef, float)
    assert isinstance(config.hidden_size, int)
