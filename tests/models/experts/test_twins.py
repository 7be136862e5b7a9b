"""A mixture of experts holds dense models: exactly, and for plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmkit.errors import ConfigError
from llmkit.models.experts import balance, merge, twins
from tests.models.experts.families import branches, built, dense, sources, tokens

KINDS = list(twins.TWINS)
TOLERANCE = 2e-5  # fused and separate matrix products round differently


@pytest.mark.parametrize("kind", KINDS)
def test_an_expert_is_the_branch_to_the_bit(kind) -> None:
    models = branches(kind, trunk=True)
    mixture = built(merge.mixture(sources(models), "frequency", "fit", 2, 0))
    for model, state in zip(models, twins.dense_states(mixture), strict=True):
        again = twins.model_of(model.config, state).eval()
        with torch.no_grad():
            assert torch.equal(again(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_experts_are_the_model_whatever_the_router_says(kind) -> None:
    model = dense(kind)
    mixture = built(merge.mixture(sources([model] * 3), "average", "random", 2, 0)).eval()
    with torch.no_grad():
        expected, found = model(tokens()).logits, mixture(tokens()).logits
    assert torch.allclose(found, expected, atol=TOLERANCE * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_plain_transformers_reads_the_mixture(kind, tmp_path: Path) -> None:
    mixture = built(merge.mixture(sources(branches(kind)), "frequency", "fit", 2, 0)).eval()
    mixture.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, mixture(tokens()).logits)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "qwen2", "olmo2"])
def test_the_file_holds_the_bytes_of_the_branches(kind, tmp_path: Path) -> None:
    models = branches(kind)
    built(merge.mixture(sources(models), "frequency", "fit", 2, 0)).save_pretrained(tmp_path)
    written = {
        tensor.numpy().tobytes() for tensor in load_file(tmp_path / "model.safetensors").values()
    }
    for model in models:
        for name, weight in model.state_dict().items():
            if twins.is_feed_forward(name):
                assert weight.numpy().tobytes() in written, name


WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, {"head_dim": 16}) for kind in ("qwen3", "llama", "mistral")),
        *((kind, WINDOW) for kind in ("qwen3", "qwen2")),
        *((kind, {**WINDOW, "max_window_layers": 2}) for kind in ("qwen3", "qwen2")),
        ("qwen2", {**WINDOW, "max_window_layers": 1}),
        ("mistral", {"sliding_window": 6}),
    ],
)
def test_a_mixture_has_the_heads_and_windows_of_its_experts(kind, settings, tmp_path) -> None:
    model = dense(kind, **settings)
    mixture = built(merge.mixture(sources([model] * 2), "average", "random", 2, 0))
    mixture.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected, found = model(tokens()).logits, again(tokens()).logits
    assert torch.allclose(found, expected, atol=TOLERANCE * float(expected.abs().max()))


def test_windows_in_some_layers_alone_are_refused_where_the_twin_has_one_for_all() -> None:
    config = dense("qwen3", **{**WINDOW, "max_window_layers": 1}).config
    with pytest.raises(ConfigError, match="with and without a sliding window"):
        twins.twin_of(config, "runs/seed")


def test_a_dense_model_is_its_own_expert() -> None:
    model = dense("llama")
    (state,) = twins.dense_states(model)
    assert state.keys() == model.state_dict().keys()


def test_an_architecture_without_a_twin_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(ConfigError) as refused:
        twins.twin_of(dense("gpt2").config, "runs/seed")
    assert all(kind in refused.value.next for kind in KINDS)
    assert "ensemble" in refused.value.next


def test_a_setting_that_the_twin_lacks_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        twins.twin_of(dense("llama", mlp_bias=True).config, "runs/seed")
    assert "mlp_bias=True" in refused.value.what


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_router_without_gradient_is_known(kind, top_k) -> None:
    mixture = built(merge.mixture(sources(branches(kind)), "average", "fit", top_k, 0))
    mixture(tokens(), labels=tokens(seed=1)).loss.backward()
    routers = [twins.router_of(block) for block in twins.expert_blocks(mixture).values()]
    largest = max(float(w.grad.abs().max()) for each in routers for w in each.parameters())
    assert balance.has_constant_routing(mixture.config) == (largest < 1e-6)
