"""Routers in closed form equal the regression that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from llmkit.models.experts import router, twins
from llmkit.models.experts.statistics import DomainStatistics, measure_domain
from tests.models.experts.families import VOCABULARY, branches, dense, tokens


def of_inputs(inputs: np.ndarray) -> DomainStatistics:
    """The statistics of these inputs [layers, tokens, width]."""
    x = torch.from_numpy(inputs)
    return DomainStatistics(
        torch.ones(1, dtype=torch.long), x.shape[1], x.transpose(1, 2) @ x, x.sum(1)
    )


def test_a_fitted_router_is_a_ridge_regression_of_the_domain() -> None:
    random = np.random.default_rng(0)
    parts = [
        random.normal(size=(2, n, 8)) + shift for n, shift in ((300, 0.5), (120, -0.2), (80, 0))
    ]
    found = router.fit_routers([of_inputs(part) for part in parts])
    for layer in range(2):
        x = np.concatenate([part[layer] for part in parts])
        y = np.concatenate([np.eye(3)[[k] * parts[k].shape[1]] for k in range(3)])
        share = np.concatenate([np.full(part.shape[1], 1 / part.shape[1]) for part in parts])
        scale = np.mean(sum((p[layer] ** 2).mean(0) for p in parts))
        fitted = Ridge(router.RIDGE * scale, fit_intercept=False, solver="cholesky")
        fitted.fit(x, y, sample_weight=share)
        assert found[layer].numpy() == pytest.approx(
            router.SCALE * fitted.coef_, rel=1e-4, abs=1e-5
        )


def test_statistics_are_those_of_the_inputs_of_each_feed_forward_network() -> None:
    model, ids = dense("qwen3"), tokens(3, 12)
    real = torch.ones_like(ids, dtype=torch.bool)
    real[1, 9:] = False
    seen: list[torch.Tensor] = []
    hook = twins.feed_forwards(model)[1].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        model(ids)
    hook.remove()
    x = seen[0][real].double()
    batches = [{"input_ids": ids[:2], "real": real[:2]}, {"input_ids": ids[2:]}]
    found = measure_domain(model, batches, torch.bincount(ids.flatten(), minlength=VOCABULARY))
    assert found.tokens == 33
    assert torch.allclose(found.products[1], x.T @ x, rtol=1e-4, atol=1e-3)
    assert torch.allclose(found.sums[1], x.sum(0), rtol=1e-4, atol=1e-4)


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = branches("llama", 1)[0].train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    measure_domain(model, [{"input_ids": tokens()}], torch.zeros(VOCABULARY, dtype=torch.long))
    assert model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in twins.feed_forwards(model))
