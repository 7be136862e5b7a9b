"""Chunked cross entropy beside torch's, and the models that it is used for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from llmkit.models import build, logits
from llmkit.models.kernels import cross_entropy
from llmkit.models.kernels.cross_entropy import LinearCrossEntropy, linear_log_probabilities

IGNORED = -100


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(2, 50), st.integers(0, 10**6))
def test_loss_and_gradients_equal_torchs_whatever_the_chunks(
    tokens, width, vocabulary, seed
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[::3] = IGNORED
    plain = functional.cross_entropy(
        hidden @ weight.T, targets, ignore_index=IGNORED, reduction="sum"
    )
    expected = torch.autograd.grad(plain, (hidden, weight))
    before = cross_entropy.FEWEST_TOKENS, cross_entropy.CHUNK_LOGITS
    cross_entropy.FEWEST_TOKENS, cross_entropy.CHUNK_LOGITS = 7, {"cpu": 1}
    try:
        loss = LinearCrossEntropy(IGNORED)(hidden, weight, targets)
        found = torch.autograd.grad(3 * loss, (hidden, weight))
        with torch.no_grad():
            without = LinearCrossEntropy(IGNORED)(hidden, weight, targets)
    finally:
        cross_entropy.FEWEST_TOKENS, cross_entropy.CHUNK_LOGITS = before
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(without, plain, rtol=1e-5, atol=1e-4)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, 3 * other, rtol=1e-4, atol=1e-4)


def test_bf16_is_used_where_autocast_is_on_and_sums_stay_fp32() -> None:
    hidden, weight = torch.randn(300, 16), torch.randn(50, 16)
    targets = torch.randint(50, (300,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = LinearCrossEntropy(IGNORED)(hidden, weight, targets)
        plain = functional.cross_entropy(
            functional.linear(hidden, weight).float(), targets, reduction="sum"
        )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("architecture", "linear"),
    [("llama", True), ("gpt2", True), ("qwen3", True), ("gpt_neox", True), ("olmo2", True),
     ("granite", False), ("gemma2", False), ("mixtral", True)],
)  # fmt: skip
def test_heads_that_scale_or_cap_are_distinguished_from_linear_ones(architecture, linear) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    if architecture == "granite":
        shape["logits_scaling"] = 8.0
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = build.causal_model(build.model_config(architecture, shape, 60, 16, special), seed=0)
    assert logits.has_linear_head(model) is linear


def test_log_probabilities_equal_torchs_and_keep_no_logits_of_all_tokens() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(300, 8, requires_grad=True)
    weight = torch.randn(50_000, 8, requires_grad=True)
    targets = torch.randint(50_000, (300,))
    sizes: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found = linear_log_probabilities(hidden, weight, targets)
    assert sum(sizes) < 300 * 50_000 / 4
    expected = -functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(found, expected)
    ours, theirs = (
        torch.autograd.grad((values * torch.arange(300)).sum(), (hidden, weight))
        for values in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)
