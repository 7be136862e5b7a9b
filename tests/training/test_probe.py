"""Operations are counted as the literature counts them."""

from __future__ import annotations

import pytest
import torch

from llmkit.training import probe
from llmkit.training.loss_module import LossModule
from llmkit.training.tasks.causal import CausalLoss
from tests.training.conftest import Rows, tiny_model


@pytest.mark.parametrize("linear_head", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_token_asks_for_six_operations_a_weight_and_attention_to_its_block(
    linear_head: bool, attention: str
) -> None:
    model = tiny_model("llama")
    model.set_attn_implementation(attention)
    examples = Rows(4)
    found = probe.operations(
        LossModule(CausalLoss(1, linear_head), model), examples, torch.device("cpu")
    )
    config, length = model.config, examples.batch([0])["input_ids"].shape[1]
    matrices = sum(w.numel() for name, w in model.named_parameters() if w.ndim == 2)
    if not config.tie_word_embeddings:
        matrices -= model.get_input_embeddings().weight.numel()
    per_token = 6 * matrices + 12 * config.num_hidden_layers * length * config.hidden_size
    assert found * examples.count([0]) == per_token * length


def test_counting_leaves_no_gradient_behind() -> None:
    model = tiny_model("llama")
    objective = LossModule(CausalLoss(1, True), model)
    probe.operations(objective, Rows(4), torch.device("cpu"))
    assert all(weight.grad is None for weight in model.parameters())
