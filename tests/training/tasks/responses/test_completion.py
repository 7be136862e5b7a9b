"""The loss of responses: chosen places give what all places give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmkit.config.schema import TrainConfig
from llmkit.data.examples import packs
from llmkit.data.examples.packs import Responses
from llmkit.training import prefetch
from llmkit.training.tasks import defaults
from llmkit.training.tasks.responses.completion import CompletionLoss
from tests.training.conftest import VOCABULARY, tiny_model


def rows() -> packs.Packs:
    chance = np.random.default_rng(0)
    lengths = chance.integers(3, 12, 30)
    starts = np.cumsum([0, *lengths])
    scored = chance.random(starts[-1]) < 0.4
    scored[starts[:-1]], scored[starts[1:] - 1] = False, True
    ids = chance.integers(1, VOCABULARY, starts[-1]).astype(np.int32)
    return packs.packed(Responses(ids, scored, starts, lengths, (), 0, 12), 12, 0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_chosen_places_give_the_loss_and_gradients_of_all(architecture) -> None:
    found = []
    for linear in (True, False):
        model = tiny_model(architecture).eval()
        sums = CompletionLoss(linear).sums(model, rows().batch([0, 3, -1]))
        sums["objective"].backward()
        found.append((sums["loss"].detach(), [p.grad for p in model.parameters()]))
    (one, gradients), (other, expected) = found
    torch.testing.assert_close(one, other)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("linear", [True, False])
def test_a_batch_without_a_prediction_has_no_loss_and_moves_nothing(linear) -> None:
    model = tiny_model()
    sums = CompletionLoss(linear).sums(model, rows().batch([-1, -1]))
    sums["objective"].backward()
    assert sums["loss"] == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("size", [1, 2, 8])
def test_the_micro_batch_changes_no_loss(size) -> None:
    examples = rows()
    model = tiny_model()
    task = CompletionLoss(linear_head=True)
    whole = task.sums(model.eval(), examples.batch(range(8)))
    parts = [
        task.sums(model, examples.batch(part)) for part in prefetch.share_of_rows(8, size, 0, 1)
    ]
    assert sum(p["loss"].item() for p in parts) == pytest.approx(whole["loss"].item(), rel=1e-6)


def test_figures_are_per_token_of_the_responses() -> None:
    found = CompletionLoss().figures({"loss": np.array(6.0)}, 4)
    assert found == {"loss": 1.5, "perplexity": pytest.approx(math.exp(1.5))}


def test_a_small_data_set_has_steps_enough_and_the_output_layer_shares_the_rate() -> None:
    few = defaults.completing(TrainConfig(), 60, 100, 4096, lora=False, device="cpu")
    assert (few.global_batch_size, few.eval_steps) == (3, 20)
    assert few.head_scale == 1.0
    many = defaults.completing(TrainConfig(), 100_000, 512, 1024, lora=True, device="cpu")
    assert many.global_batch_size == 50
    assert many.learning_rate > few.learning_rate
    assert many.metric_for_best_model == "loss"
