"""Frequencies of drawn tokens against exact probabilities, for each method and all together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.schema import GenerationConfig
from llmkit.inference import sampler
from llmkit.inference.generated import Sample

N = 2000
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0}


def exact(logits: np.ndarray, settings: GenerationConfig) -> np.ndarray:
    """The distribution of the documented order, written out: temperature, top-k, top-p, min-p,
    typical-p, each on what the one before has left."""
    p = np.exp((logits - logits.max()) / settings.temperature)
    p /= p.sum()
    if settings.top_k:
        p = _kept(p, np.argsort(-p, kind="stable")[: settings.top_k])
    if settings.top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p = _kept(p, order[before < settings.top_p])
    if settings.min_p:
        p = _kept(p, np.flatnonzero(p >= settings.min_p * p.max()))
    if settings.typical_p < 1:
        possible = np.flatnonzero(p)
        surprise = -np.log(p[possible])
        distance = np.abs(surprise - (p[possible] * surprise).sum())
        order = possible[np.argsort(distance, kind="stable")]
        before = np.cumsum(p[order]) - p[order]
        p = _kept(p, order[before < settings.typical_p])
    return p


def _kept(p: np.ndarray, places: np.ndarray) -> np.ndarray:
    kept = np.zeros_like(p)
    kept[places] = p[places]
    return kept / kept.sum()


def assert_drawn_from(p: np.ndarray, tokens: list[int]) -> None:
    counts = np.bincount(tokens, minlength=len(p))
    assert counts[p == 0].sum() == 0
    # Rare tokens are counted together: the test wants at least five of each.
    rare = p * len(tokens) < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(p[~rare], p[rare].sum()) * len(tokens)
    keep = expected > 1e-9
    if keep.sum() > 1:
        assert chisquare(observed[keep], expected[keep]).pvalue > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        PLAIN | {"temperature": 0.5},
        PLAIN | {"temperature": 2.0},
        PLAIN | {"top_k": 5},
        PLAIN | {"top_p": 0.7},
        PLAIN | {"min_p": 0.1},
        PLAIN | {"typical_p": 0.8},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9},
    ],
    ids=lambda settings: " ".join(f"{k}={v}" for k, v in settings.items()),
)
def test_frequencies_are_those_of_the_exact_distribution(
    settings: dict[str, Any],
    tiny: Callable[..., PreTrainedModel],
    ask: Callable[..., list[Sample]],
) -> None:
    model = tiny("llama", sharpness=60.0)
    samples = ask(
        model, ["Once"], num_return_sequences=N, max_new_tokens=1, micro_batch_size=N, **settings
    )
    with torch.no_grad():
        logits = model(torch.tensor([samples[0].prompt.ids])).logits[0, -1].double().numpy()
    p = exact(logits, GenerationConfig(**settings))
    assert_drawn_from(p, [sample.tokens[0] for sample in samples])


def test_the_second_token_is_drawn_given_the_first(
    tiny: Callable[..., PreTrainedModel], ask: Callable[..., list[Sample]]
) -> None:
    model = tiny("llama", sharpness=60.0)
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 3, "micro_batch_size": 512}
    samples = ask(model, ["Once"], num_return_sequences=N, max_new_tokens=2, **settings)
    first, count = Counter(sample.tokens[0] for sample in samples).most_common(1)[0]
    assert count > 300
    ids = [*samples[0].prompt.ids, first]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1].double().numpy()
    p = exact(logits, GenerationConfig(temperature=1.0, top_k=3))
    assert_drawn_from(p, [s.tokens[1] for s in samples if s.tokens[0] == first])


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=50), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_where_the_uniform_number_falls(logits: list[float], uniform: float) -> None:
    scores = torch.tensor([[*logits, sampler.EXCLUDED]])
    token = int(sampler.draw(scores, torch.tensor([uniform], dtype=torch.float64)))
    p = scores[0].double().softmax(-1).tolist()
    assert p[token] > 0
    below = math.fsum(p[:token])
    assert below - 1e-9 <= uniform <= below + p[token] + 1e-9


def test_the_largest_uniform_number_draws_a_token_that_can_come() -> None:
    scores = torch.tensor([[0.0, 1.0, sampler.EXCLUDED, sampler.EXCLUDED]])
    assert sampler.draw(scores, torch.tensor([1.0], dtype=torch.float64)).tolist() == [1]


def test_samples_of_a_prompt_are_independent(
    llama: PreTrainedModel, ask: Callable[..., list[Sample]], bpe: PreTrainedTokenizerFast
) -> None:
    samples = ask(llama, ["Once"], num_return_sequences=64, max_new_tokens=8, top_k=0)
    assert len({sample.tokens for sample in samples}) > 60
