"""Dropout drops as many elements as it says, keeps their expectation, and belongs to examples."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForSequenceClassification

from llmkit.models.kernels import dropout
from tests.training.conftest import tiny_model

CPU = torch.device("cpu")


def masks(*examples: int, seed: int = 0):
    return dropout.of_examples(seed, np.array(examples or (0,)), CPU)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_elements_are_dropped_by_chance_and_the_others_scaled(p: float, dtype: torch.dtype) -> None:
    n = 1_000_003
    with masks():
        found = functional.dropout(torch.ones(1, n, dtype=dtype), p)
    kept = found[found != 0]
    share = len(kept) / n
    assert abs(share - (1 - p)) < 5 * math.sqrt(p * (1 - p) / n) + 1 / dropout.DROPOUT_LEVELS
    assert len(kept.unique()) == 1
    rounding = 1 / dropout.DROPOUT_LEVELS / (1 - p) + torch.finfo(dtype).eps
    assert float(kept[0]) == pytest.approx(1 / (1 - p), rel=rounding)


@pytest.mark.parametrize("apart", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("along", [0, 1, 2, 3])
def test_neighbours_are_dropped_independently(apart: int, along: int) -> None:
    with masks(*range(16)):
        kept = (functional.dropout(torch.ones(16, 16, 64, 64), 0.5) != 0).float() - 0.5
    n = kept.shape[along] - apart
    product = kept.narrow(along, 0, n) * kept.narrow(along, apart, n)
    assert abs(float(product.mean())) < 5 * 0.25 / math.sqrt(product.numel())


def test_four_corners_of_a_rectangle_are_dropped_independently() -> None:
    """As they would not be, were the coordinates hashed one by one and joined."""
    with masks():
        kept = (functional.dropout(torch.ones(1, 1024, 1024), 0.5) != 0).float()[0] * 2 - 1
    product = kept[:-1, :-4] * kept[1:, :-4] * kept[:-1, 4:] * kept[1:, 4:]
    assert abs(float(product.mean())) < 5 / math.sqrt(product.numel())


def test_seeds_examples_and_layers_are_dropped_independently() -> None:
    given = torch.ones(2, 1 << 18)
    found = []
    for seed in (0, 1):
        with masks(3, 4, seed=seed):
            found += [functional.dropout(given, 0.5) for _ in range(2)]
    kept = (torch.cat(found) != 0).double() - 0.5  # [seed x layer x example, elements]
    correlation = kept @ kept.T / kept.shape[1] / 0.25
    assert (correlation - torch.eye(8)).abs().max() < 5 / math.sqrt(kept.shape[1])


def test_the_gradient_passes_where_the_element_does() -> None:
    given = torch.randn(7, 143, requires_grad=True)
    with masks(*range(7)):
        out = functional.dropout(given, 0.3)
    out.sum().backward()
    assert torch.equal(given.grad * given.detach(), out.detach())


SHAPES = ((), (37,), (9, 37), (3, 9, 11), (3, 5, 2, 7))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows_joined", [1, 6])
def test_company_and_padding_change_no_mask(shape: tuple[int, ...], rows_joined: int) -> None:
    """`rows_joined` is how often each example has a place in the first dimension."""
    with masks(4, 9, 2):
        together = functional.dropout(torch.ones(3 * rows_joined, *(n + 2 for n in shape)), 0.5)
    with masks(9):
        alone = functional.dropout(torch.ones(rows_joined, *shape), 0.5)
    inside = tuple(slice(n) for n in shape)
    assert torch.equal(together[rows_joined : 2 * rows_joined][:, *inside], alone)


def test_the_same_seed_drops_the_same_and_evaluation_nothing() -> None:
    layer, given = nn.Dropout(0.5), torch.ones(3, 5, 7)
    found = []
    for _ in range(2):
        with masks(0, 1, 2, seed=3):
            found.append((layer(given), layer(given)))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][0], found[0][1])
    with masks(0, 1, 2):
        assert torch.equal(layer.eval()(given), given)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_and_everything_can_be_dropped(p: float) -> None:
    with masks():
        assert torch.equal(functional.dropout(torch.ones(5), p), torch.full((5,), 1 - p))


def test_dropout_in_place_is_the_same() -> None:
    given = torch.ones(2, 40)
    found = []
    for inplace in (False, True):
        with masks(0, 1):
            found.append(functional.dropout(given, 0.5, inplace=inplace))
    assert torch.equal(*found)
    assert torch.equal(given, found[0])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("shape", [(2, 11), (4, 40, 10), (2, 2, 16, 16), (2, 3, 30, 31)])
def test_compiled_masks_are_the_same(shape: tuple[int, ...]) -> None:
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: functional.dropout(torch.softmax(x, -1), 0.3), options={"fallback_random": True}
    )
    with masks(5, 6):
        expected = functional.dropout(torch.ones(shape), 0.3)
    with masks(5, 6):
        assert torch.equal(compiled(torch.ones(shape)) != 0, expected != 0)


def test_recomputed_activations_have_the_masks_that_they_had() -> None:
    def layer(x: Tensor) -> Tensor:
        return functional.dropout(functional.dropout(x, 0.5).sin(), 0.5)

    grads = []
    for recomputed in (False, True):
        given = torch.ones(2, 50, requires_grad=True)
        with masks(0, 1):
            x = given * 2
            for _ in range(3):
                x = checkpoint(layer, x, use_reentrant=False) if recomputed else layer(x)
            x.sum().backward()
        grads.append(given.grad)
    assert torch.equal(*grads)


def masked(query: Tensor, key: Tensor) -> Iterator[dict]:
    """Every way to tell what a query sees."""
    shape = query.shape[-2], key.shape[-2]
    seen = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0)) < 0.7
    seen[..., 0] = True
    yield {}
    yield {"is_causal": True}
    yield {"attn_mask": seen}
    yield {"attn_mask": torch.randn(1, 1, *shape), "scale": 0.3}


@pytest.mark.parametrize("way", range(4))
@pytest.mark.parametrize("shared", [False, True])
def test_attention_is_torchs_but_for_the_mask(way: int, shared: bool) -> None:
    """A value that names its key shows the weights, dropped ones as zero."""
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 2 if shared else 4, 6, 8)
    value = torch.eye(6).expand(2, key.shape[1], 6, 6)
    options = list(masked(query, key))[way]
    own = functional.scaled_dot_product_attention
    expected = own(query, key, value, enable_gqa=shared, **options)
    with masks(0, 1):
        found = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=0.25, enable_gqa=shared, **options
        )
    kept = found != 0
    torch.testing.assert_close(found[kept], expected[kept] / 0.75)
    assert 0.6 < float((kept & (expected > 0)).sum() / (expected > 0).sum()) < 0.9
    assert functional.scaled_dot_product_attention is own


def test_torchs_own_attention_layer_has_masks_of_examples() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
    given = torch.randn(3, 6, 16)
    with masks(0, 1, 2):
        together = layer(given)
    with masks(1):
        torch.testing.assert_close(layer(given[1:2]), together[1:2])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_gives_an_example_the_same_whatever_stands_beside_it(attention: str) -> None:
    model = tiny_model("gpt2", resid_pdrop=0.1, attn_pdrop=0.3).train()
    model.set_attn_implementation(attention)
    ids = torch.arange(24).view(2, 12) % 60
    with masks(7, 3):
        together = model(input_ids=ids).logits
    with masks(3):
        alone = model(input_ids=ids[1:, :9]).logits
    torch.testing.assert_close(alone, together[1:, :9])
    assert not torch.allclose(alone, model.eval()(input_ids=ids[1:, :9]).logits, rtol=0.1)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert", {}), ("roberta", {}), ("electra", {}), ("albert", {}), ("mpnet", {}),
        ("deberta-v2", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
        ("modernbert", {"attention_dropout": 0.1, "mlp_dropout": 0.1}),
        ("distilbert", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
    ],
)  # fmt: skip
def test_encoders_of_transformers_give_an_example_the_same_in_any_batch(
    kind: str, settings: dict[str, Any]
) -> None:
    shape = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "vocab_size": 60, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "distilbert":
        shape = {"vocab_size": 60, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **shape, **settings)
    model = AutoModelForSequenceClassification.from_config(config).train()
    ids = torch.arange(24).view(2, 12) % 50 + 4
    real = torch.ones_like(ids)
    real[1, 9:] = 0
    with masks(7, 3):
        together = model(input_ids=ids, attention_mask=real).logits
    with masks(3):
        alone = model(input_ids=ids[1:, :9], attention_mask=real[1:, :9]).logits
    torch.testing.assert_close(alone, together[1:], rtol=1e-4, atol=1e-5)
    still = model.eval()(input_ids=ids, attention_mask=real).logits
    assert not torch.allclose(together, still, rtol=1e-3, atol=1e-4)
