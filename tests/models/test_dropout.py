"""Dropout drops as many elements as it says, and keeps their expectation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from llmkit.models import dropout
from tests.training.conftest import tiny_model


def quick(p: float) -> nn.Module:
    layer = nn.Sequential(nn.Dropout(p))
    dropout.quicken(layer)
    return layer


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_elements_are_dropped_by_chance_and_the_others_scaled(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    n = 1_000_003
    found = quick(p)(torch.ones(n, dtype=dtype))
    kept = found[found != 0]
    share = len(kept) / n
    assert abs(share - (1 - p)) < 5 * math.sqrt(p * (1 - p) / n) + 1 / dropout.LEVELS
    assert len(kept.unique()) == 1
    rounding = 1 / dropout.LEVELS / (1 - p) + torch.finfo(dtype).eps
    assert float(kept[0]) == pytest.approx(1 / (1 - p), rel=rounding)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    kept = (quick(0.5)(torch.ones(1 << 20)) != 0).float() - 0.5
    for apart in (1, 2, 3, 4, 8):
        assert abs(float((kept[apart:] * kept[:-apart]).mean())) < 5 * 0.25 / math.sqrt(1 << 20)


def test_the_gradient_passes_where_the_element_does() -> None:
    torch.manual_seed(0)
    given = torch.randn(1001, requires_grad=True)
    out = quick(0.3)(given)
    out.sum().backward()
    assert torch.equal(given.grad * given.detach(), out.detach())


def test_the_same_seed_drops_the_same_and_evaluation_nothing() -> None:
    layer, given = quick(0.5), torch.ones(3, 5, 7)
    torch.manual_seed(3)
    first = layer(given)
    torch.manual_seed(3)
    assert torch.equal(layer(given), first)
    assert not torch.equal(layer(given), first)
    assert torch.equal(layer.eval()(given), given)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_and_everything_can_be_dropped(p: float) -> None:
    assert torch.equal(quick(p)(torch.ones(5)), torch.full((5,), 1 - p))


def test_every_dropout_layer_of_a_model_is_given_it() -> None:
    model = tiny_model("gpt2", resid_pdrop=0.1)
    dropout.quicken(model)
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Dropout)}
    assert kinds == {dropout.Dropout}
