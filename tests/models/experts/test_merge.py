"""The weights of a merge are a pure function of its experts."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from llmkit.errors import ConfigError
from llmkit.models.experts import merge
from llmkit.models.experts.shared import SharedWeights
from tests.models.experts.families import VOCABULARY, branches, built, sources

EMBEDDING = "model.embed_tokens.weight"


def same(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_average_is_the_mean_of_all_weights() -> None:
    models = branches("gpt2")
    found = built(merge.average(sources(models))).state_dict()
    for name, weight in found.items():
        parts = [model.state_dict()[name].double().numpy() for model in models]
        assert np.array_equal(weight.numpy(), np.mean(parts, axis=0).astype(np.float32)), name


def test_frequency_weights_the_rows_of_a_token_by_its_use() -> None:
    models = branches("qwen3", tie_word_embeddings=False)
    given = sources(models)
    weights = SharedWeights(given, "frequency")
    merged = weights.merged([name for part in weights.parts() for name in part])
    counts = np.stack([each.expert.statistics.frequency.numpy() for each in given]).astype(float)
    use = counts / counts.sum(axis=1, keepdims=True)
    for name in (EMBEDDING, "lm_head.weight"):
        rows = np.stack([model.state_dict()[name].double().numpy() for model in models])
        for token in range(VOCABULARY):
            shares = use[:, token] if use[:, token].sum() else np.ones(len(models))
            expected = (rows[:, token] * shares[:, None]).sum(0) / shares.sum()
            assert merged[name][token].numpy() == pytest.approx(expected, rel=1e-6)
    attention = "model.layers.0.self_attn.q_proj.weight"
    mean = np.mean([model.state_dict()[attention].double().numpy() for model in models], axis=0)
    assert np.array_equal(merged[attention].numpy(), mean.astype(np.float32))


def test_shared_weights_can_be_those_of_one_expert() -> None:
    models = branches("qwen3")
    found = built(merge.mixture(sources(models), "b", "fit", 2, 0)).state_dict()
    assert torch.equal(found[EMBEDDING], models[1].state_dict()[EMBEDDING])


def test_a_common_trunk_stays_as_it_is() -> None:
    models = branches("qwen3", trunk=True)
    for shared in ("frequency", "average", "c"):
        found = built(merge.mixture(sources(models), shared, "fit", 2, 0)).state_dict()
        assert torch.equal(found[EMBEDDING], models[0].state_dict()[EMBEDDING])


def test_a_router_needs_statistics() -> None:
    given = sources(branches("qwen3"))
    bare = [replace(each, expert=replace(each.expert, statistics=None)) for each in given]
    with pytest.raises(ConfigError) as refused:
        merge.mixture(bare, "average", "fit", 2, 0)
    assert "merge.router=random" in refused.value.next
    assert same(
        built(merge.mixture(bare, "average", "random", 2, 0)),
        built(merge.mixture(bare, "average", "random", 2, 0)),
    )


def test_a_family_that_shares_no_order_gives_the_same_model() -> None:
    given = sources(branches("llama"))
    first = built(merge.mixture(given, "frequency", "fit", 2, 0))
    for order in permutations(given):
        ordered = sorted(order, key=lambda each: each.name)
        assert same(first, built(merge.mixture(ordered, "frequency", "fit", 2, 0)))
