"""Which experts read a text is known, and can be chosen."""

from __future__ import annotations

import pytest
import torch

from llmkit.errors import ConfigError
from llmkit.models.experts import merge, routing, twins
from llmkit.models.experts.ensemble import EnsembleForCausalLM, ensemble_config
from llmkit.models.experts.record import ExpertsRecord
from tests.models.experts.families import branches, sources, tokens

NAMES = ["a", "b", "c"]


def mixture(kind: str = "qwen3", top_k: int = 2):
    given = sources(branches(kind, trunk=True))
    model = merge.mixture(given, "average", "fit", top_k, 0).eval()
    return model, record(given, "moe")


def record(given, kind) -> ExpertsRecord:
    experts = [each.expert for each in given]
    return ExpertsRecord(kind, experts, "", "", "trunk", given[0].record.dense, {})


def ensemble():
    models = branches("llama")
    given = sources(models)
    return EnsembleForCausalLM(ensemble_config(NAMES, models[0].config), models).eval(), record(
        given, "ensemble"
    )


@pytest.mark.parametrize("kind", list(twins.TWINS))
@torch.no_grad()
def test_weights_are_those_that_the_router_gives(kind) -> None:
    model, _ = mixture(kind)
    found = routing.expert_weights(model, {"input_ids": tokens()})
    assert found.shape == (2, 2, 24, 3)
    assert torch.equal((found > 0).sum(-1), torch.full(found.shape[:-1], 2))
    if getattr(model.config, "norm_topk_prob", True):
        assert torch.allclose(found.sum(-1), torch.ones(found.shape[:-1]))
    assert not any(m._forward_hooks for m in model.modules())


@torch.no_grad()
def test_the_weights_of_an_ensemble_begin_even_and_follow_the_evidence() -> None:
    model, _ = ensemble()
    ids = tokens()
    found = routing.expert_weights(model, {"input_ids": ids})[0]
    assert torch.allclose(found[:, 0], torch.full((2, 3), 1 / 3))
    experts = routing.members(model, record(sources(branches("llama")), "ensemble"))
    chances = torch.stack([each(ids).logits.log_softmax(-1) for each in experts])
    seen = chances[:, :, :-1].gather(3, ids[None, :, 1:, None].expand(3, -1, -1, 1))[..., 0]
    last = seen.sum(2).softmax(0).T
    assert torch.allclose(found[:, -1], last, atol=1e-4)


@pytest.mark.parametrize("make", [mixture, ensemble])
@torch.no_grad()
def test_one_expert_alone_is_the_branch(make) -> None:
    model, known = make()
    originals = branches("qwen3", trunk=True) if make is mixture else branches("llama")
    for name, original in zip(NAMES, originals, strict=True):
        alone = routing.with_experts(model, known, [name])
        assert torch.equal(alone(tokens()).logits, original(tokens()).logits)


@pytest.mark.parametrize("kind", list(twins.TWINS))
@torch.no_grad()
def test_experts_that_are_left_out_change_nothing(kind) -> None:
    model, known = mixture(kind)
    two = routing.with_experts(model, known, ["a", "c"])
    before = two(tokens()).logits.clone()
    for block in twins.expert_blocks(two).values():
        block.experts.down_proj[1] *= 100
    assert torch.equal(two(tokens()).logits, before)


@torch.no_grad()
def test_all_experts_are_the_model() -> None:
    model, known = mixture()
    before = model(tokens()).logits.clone()
    assert torch.allclose(routing.with_experts(model, known, NAMES)(tokens()).logits, before)


@torch.no_grad()
def test_some_experts_of_an_ensemble_are_an_ensemble() -> None:
    model, known = ensemble()
    models = branches("llama")
    two = EnsembleForCausalLM(ensemble_config("ac", models[0].config), [models[0], models[2]])
    found = routing.with_experts(model, known, ["c", "a"])
    assert torch.equal(found(tokens()).logits, two.eval()(tokens()).logits)


def test_unknown_experts_are_refused_with_those_that_exist() -> None:
    model, known = mixture()
    with pytest.raises(ConfigError) as refused:
        routing.with_experts(model, known, ["a", "law"])
    assert "law" in refused.value.what
    assert "a, b, c" in refused.value.next
    with pytest.raises(ConfigError) as refused:
        routing.with_experts(branches("llama", 1)[0], None, ["a"])
    assert "llmkit merge" in refused.value.next
