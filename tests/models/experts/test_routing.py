"""Which experts read a text is known, and can be chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmkit.errors import ConfigError
from llmkit.models import pretrained
from llmkit.models.experts import merge, routing, twins
from llmkit.models.experts.ensemble import EnsembleForCausalLM, ensemble_config
from llmkit.models.experts.record import ExpertsRecord, write_experts
from llmkit.models.pretrained import Pretrained
from tests.models.experts.families import branches, built, sources, tokens

NAMES = ["a", "b", "c"]


def mixture(kind: str = "qwen3", top_k: int = 2):
    given = sources(branches(kind, trunk=True))
    model = built(merge.mixture(given, "average", "fit", top_k, 0)).eval()
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


def saved(make, directory: Path) -> Pretrained:
    """A merged model with its record, opened from a directory."""
    model, known = make()
    model.save_pretrained(directory)
    write_experts(directory, known)
    return pretrained.open_model(str(directory))


def only(opened: Pretrained, *names: str):
    return routing.load_experts(opened, names).eval()


@pytest.mark.parametrize("make", [mixture, ensemble])
@torch.no_grad()
def test_one_expert_alone_is_the_branch(make, tmp_path) -> None:
    opened = saved(make, tmp_path)
    originals = branches("qwen3", trunk=True) if make is mixture else branches("llama")
    for name, original in zip(NAMES, originals, strict=True):
        assert torch.equal(only(opened, name)(tokens()).logits, original(tokens()).logits)


@pytest.mark.parametrize("kind", list(twins.TWINS))
@torch.no_grad()
def test_experts_that_are_not_chosen_change_nothing(kind) -> None:
    two = routing.routed_to(*mixture(kind), ["a", "c"])
    before = two(tokens()).logits.clone()
    for block in twins.expert_blocks(two).values():
        block.experts.down_proj[1] *= 100
    assert torch.equal(two(tokens()).logits, before)


@pytest.mark.parametrize("make", [mixture, ensemble])
@torch.no_grad()
def test_all_experts_are_the_model(make, tmp_path) -> None:
    opened = saved(make, tmp_path)
    found, whole = (only(opened, *names)(tokens()).logits for names in (NAMES, ()))
    assert torch.allclose(found, whole)


@torch.no_grad()
def test_some_experts_of_an_ensemble_are_an_ensemble_that_loads_no_others(tmp_path) -> None:
    opened = saved(ensemble, tmp_path)
    (tmp_path / "experts/b/model.safetensors").unlink()
    models = branches("llama")
    two = EnsembleForCausalLM(ensemble_config("ac", models[0].config), [models[0], models[2]])
    found = only(opened, "c", "a", "c")
    assert torch.equal(found(tokens()).logits, two.eval()(tokens()).logits)


def test_unknown_experts_are_refused_with_those_that_exist(tmp_path) -> None:
    with pytest.raises(ConfigError) as refused:
        only(saved(mixture, tmp_path / "merged"), "a", "law")
    assert "law" in refused.value.what
    assert "a, b, c" in refused.value.next
    branches("llama", 1)[0].save_pretrained(tmp_path / "dense")
    with pytest.raises(ConfigError) as refused:
        only(pretrained.open_model(str(tmp_path / "dense")), "a")
    assert "llmkit merge" in refused.value.next
