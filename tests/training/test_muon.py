"""Muon beside torch's own."""

from __future__ import annotations

import pytest
import torch

from llmkit.config.schema import TrainConfig
from llmkit.training import muon
from llmkit.training.muon import Halves, Muon, orthogonal
from llmkit.training.optimizer import NamedOptimizer
from llmkit.training.tasks import defaults
from tests.training.conftest import tiny_model

SHAPES = [(16, 16), (16, 16), (40, 16), (16, 40), (16, 40)]


def test_steps_equal_those_of_torchs_muon() -> None:
    def trained(make) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        matrices = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
        optimizer = make(matrices)
        for _ in range(5):
            for matrix in matrices:
                matrix.grad = torch.randn(matrix.shape, generator=generator)
            optimizer.step()
        return [matrix.detach() for matrix in matrices]

    ours = trained(lambda p: Muon(p, lr=0.02, weight_decay=0.1))
    torchs = trained(
        lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    )
    for one, other in zip(ours, torchs, strict=True):
        # bf16 products in another order: about 0.4% of a step of 0.02.
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


def test_singular_values_come_near_one_whatever_the_matrix() -> None:
    generator = torch.Generator().manual_seed(1)
    for shape in ((4, 30, 30), (3, 20, 50), (2, 50, 20)):
        matrices = torch.randn(shape, generator=generator) * 1e-3
        values = torch.linalg.svdvals(orthogonal(matrices).float())
        assert values.max() < 1.35
        assert values.median() > 0.6


def test_matrices_stepped_together_move_as_each_would_alone() -> None:
    def moved(count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(2)
        matrices = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(count)]
        for matrix in matrices:
            matrix.grad = torch.randn(8, 8, generator=generator)
        Muon(matrices, lr=1.0).step()
        return matrices[0].detach()

    torch.testing.assert_close(moved(1), moved(4), rtol=0, atol=2e-2)


ROUTED = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 4, "decoder_sparse_step": 1},
    "gpt_oss": {"num_local_experts": 4},
    "llama4_text": {"num_local_experts": 4},
    "phimoe": {"num_local_experts": 4},
    "granitemoe": {"num_local_experts": 4},
    "deepseek_v3": {"n_routed_experts": 4, "n_group": 1, "topk_group": 1,
                    "first_k_dense_replace": 0},
    "jamba": {"num_experts": 4},
}  # fmt: skip


@pytest.mark.parametrize("kind", ROUTED)
def test_experts_are_hidden_matrices_and_routers_are_not(kind) -> None:
    model = tiny_model(kind, **ROUTED[kind])
    found = muon.hidden(model)
    named = dict(model.named_parameters())
    experts = {n for n, weight in named.items() if ".experts." in n and weight.ndim == 3}
    assert experts
    assert experts <= found.keys()
    routers = {
        n for n in named if n.endswith((".gate.weight", "router.weight", "expert_gate.weight"))
    }
    assert routers
    assert not routers & found.keys()
    others = ("embed", "lm_head", "norm", "conv", "bias", "A_log")
    assert not [name for name in found if any(part in name for part in others)]
    assert any("self_attn" in name or "mamba" in name for name in found)


def test_a_list_of_experts_has_a_router_too() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.choose = torch.nn.Linear(8, 3, bias=False)
            self.experts = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))

    assert set(muon.hidden(Block())) == {f"experts.{i}.weight" for i in range(3)}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "transformer", "bert", "phi3"])
def test_every_linear_layer_of_a_dense_model_is_a_hidden_matrix_but_the_last(kind) -> None:
    found = muon.hidden(tiny_model(kind))
    assert found
    assert set(found.values()) == {None}
    assert not [name for name in found if "embed" in name or "lm_head" in name or "wte" in name]


@pytest.mark.parametrize(
    ("shape", "halves", "parts"),
    [
        ((3, 8, 6), None, lambda x: [*x]),
        ((3, 8, 6), Halves(-2, alternate=False), lambda x: [p for m in x for p in (m[:4], m[4:])]),
        (
            (3, 6, 8),
            Halves(-1, alternate=False),
            lambda x: [p for m in x for p in (m[:, :4], m[:, 4:])],
        ),
        (
            (3, 6, 8),
            Halves(-1, alternate=True),
            lambda x: [p for m in x for p in (m[:, ::2], m[:, 1::2])],
        ),
        (
            (3, 8, 6),
            Halves(-2, alternate=True),
            lambda x: [p for m in x for p in (m[::2], m[1::2])],
        ),
    ],
)
def test_each_matrix_of_a_stack_moves_as_it_would_alone(shape, halves, parts) -> None:
    generator = torch.Generator().manual_seed(3)
    stack = torch.nn.Parameter(torch.randn(shape, generator=generator))
    gradient = torch.randn(shape, generator=generator)
    alone = [torch.nn.Parameter(part.clone()) for part in parts(stack.detach())]
    stack.grad = gradient
    for each, part in zip(alone, parts(gradient), strict=True):
        each.grad = part.clone()
    Muon([{"params": [stack], "halves": halves}], lr=0.02).step()
    for each in alone:
        Muon([each], lr=0.02).step()
    for one, other in zip(parts(stack.detach()), alone, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=5e-4)


def test_muon_moves_experts_and_adamw_the_router() -> None:
    model = tiny_model("qwen3_moe", num_experts=4)
    adamw, muon = NamedOptimizer(
        model, "muon", defaults.pretraining(TrainConfig(weight_decay=0.1))
    ).parts
    names = {id(weight): name for name, weight in model.named_parameters()}
    by_muon = {names[id(w)]: g for g in muon.param_groups for w in g["params"]}
    by_adamw = {names[id(w)] for g in adamw.param_groups for w in g["params"]}
    layer = "model.layers.0.mlp."
    assert by_muon[layer + "experts.gate_up_proj"]["halves"] == Halves(-2, alternate=False)
    assert by_muon[layer + "experts.down_proj"]["halves"] is None
    assert layer + "gate.weight" in by_adamw
