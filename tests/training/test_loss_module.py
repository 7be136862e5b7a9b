"""Layers that are compiled once, for training alone."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from llmkit.models import build, logits
from llmkit.training.loss_module import LossModule
from llmkit.training.tasks.causal import CausalLoss


def a_model(architecture: str, n_layers: int) -> PreTrainedModel:
    shape = {"hidden_size": 32, "num_hidden_layers": n_layers}
    return build.causal_model(build.model_config(architecture, shape, 60, 16, {}), seed=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "transformer"])
def test_layers_are_found_in_any_architecture(architecture: str) -> None:
    model = a_model(architecture, 3)
    found = logits.layers_of(model)
    assert len(found) == 3
    assert len({type(layer) for layer in found}) == 1
    inside = sum(weight.numel() for layer in found for weight in layer.parameters())
    assert inside > 0.6 * model.num_parameters()


def test_the_body_stands_for_layers_that_are_in_no_list() -> None:
    model = a_model("llama", 1)
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    assert logits.layers_of(model) == [model.model]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_what_is_compiled_for_one_layer_serves_all_and_nothing_but_training() -> None:
    model = a_model("llama", 4)
    objective = LossModule(CausalLoss(n_bytes=1, linear_head=True), model)
    ids = torch.randint(60, (2, 16), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "targets": ids}

    def gradients() -> list[torch.Tensor]:
        objective.zero_grad()
        objective(batch)["objective"].backward()
        return [weight.grad.clone() for weight in model.parameters()]

    plain = gradients()
    torch.compiler.reset()
    counters.clear()
    objective.compile_layers()
    with objective.compiled():
        compiled = gradients()
    torch.testing.assert_close(compiled, plain)
    layer_and_head = 2
    assert counters["stats"]["unique_graphs"] == layer_and_head
    with torch.no_grad():
        objective(batch)
    objective.compile_nothing()
    torch.testing.assert_close(gradients(), plain)
    objective.compile_layers()
    with objective.compiled():
        torch.testing.assert_close(gradients(), compiled)
    assert counters["stats"]["unique_graphs"] == layer_and_head


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_layers_whose_activations_are_computed_again_can_be_compiled() -> None:
    model = a_model("llama", 3).train()
    model.gradient_checkpointing_enable()
    objective = LossModule(CausalLoss(n_bytes=1, linear_head=True), model)
    ids = torch.randint(60, (2, 16), generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(2):
        objective.zero_grad()
        with objective.compiled():
            objective({"input_ids": ids, "targets": ids})["objective"].backward()
        found.append([weight.grad.clone() for weight in model.parameters()])
        objective.compile_layers()
    torch.testing.assert_close(*found)
