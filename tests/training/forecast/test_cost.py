"""The cost of a model on the meta device is that of the model itself."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmkit.config.schema import LoraConfig
from llmkit.models import build, lora
from llmkit.training import muon, probe
from llmkit.training.forecast import cost
from llmkit.training.loss_module import LossModule
from llmkit.training.optimizer import NamedOptimizer
from llmkit.training.tasks import defaults
from llmkit.training.tasks.causal import CausalLoss
from tests.training.conftest import BLOCK, VOCABULARY, Rows, tiny_model

NO_LORA = LoraConfig()


def on_meta(architecture: str, **settings: int) -> torch.nn.Module:
    with torch.device("meta"):
        return tiny_model(architecture, **settings)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gpt_neox", "transformer"])
def test_operations_are_those_that_torch_counts(architecture: str) -> None:
    examples = Rows(4)
    objective = LossModule(CausalLoss(1, linear_head=False), tiny_model(architecture))
    counted = probe.operations(objective, examples, torch.device("cpu"))
    per_token = counted * examples.count([0]) / BLOCK
    assert cost.operations_per_token(on_meta(architecture), BLOCK) == pytest.approx(per_token)


def test_a_token_costs_only_the_experts_that_it_is_routed_to() -> None:
    sizes = {"num_experts_per_tok": 2, "num_local_experts": 4}
    few, many = (on_meta("mixtral", **{**sizes, "num_local_experts": n}) for n in (4, 8))
    router = 6 * 4 * 32 * 2  # four more rows in the router of each of two layers
    one, other = (cost.operations_per_token(model, BLOCK) for model in (few, many))
    assert other - one == router


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_operations_of_muon_are_those_that_torch_counts(architecture: str) -> None:
    model = tiny_model(architecture)
    named = dict(model.named_parameters())
    with FlopCounterMode(display=False) as counter:
        for name in muon.hidden(model):
            weight = named[name].detach()
            muon.orthogonal(weight.reshape(-1, *weight.shape[-2:]))
    assert cost.operations_of_muon(on_meta(architecture)) == counter.get_total_flops()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("architecture", ["llama", "bert", "gpt2"])
def test_memory_is_that_of_weights_gradients_and_moments(optimizer: str, architecture: str) -> None:
    purpose = build.MASKED_MODEL if architecture == "bert" else build.LANGUAGE_MODEL
    special = {"pad_token_id": 0}
    config = build.model_config(architecture, {}, VOCABULARY, BLOCK, special, purpose)
    model = build.new_model(config, 0, purpose)
    train = defaults.pretraining(defaults.TrainConfig(weight_decay=0.1))
    named = NamedOptimizer(model, optimizer, train)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    named.step(1e-3)
    moments = [each for each in named.state().values() if each.ndim]
    held = [*model.parameters(), *(w.grad for w in model.parameters()), *moments]
    n_bytes = sum(each.numel() * each.element_size() for each in held if each is not None)
    with torch.device("meta"):
        bare = build.new_model(config, 0, purpose)
    assert cost.fixed_memory(bare, optimizer, NO_LORA) == n_bytes


def test_memory_of_low_rank_updates_is_that_of_peft() -> None:
    pytest.importorskip("peft")
    settings = LoraConfig(r=4)
    bare = on_meta("llama").requires_grad_(False)
    found = cost.fixed_memory(bare, "adamw", settings)
    model = tiny_model("llama")
    lora.attach(model, settings, 0)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    everything = sum(weight.numel() for weight in model.parameters())
    assert found == pytest.approx(4 * (everything + 3 * trained), rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "transformer"])
def test_memory_of_a_token_is_near_what_autograd_keeps(architecture: str, precision: str) -> None:
    sizes = {"hidden_size": 128, "num_attention_heads": 2}
    model = tiny_model(architecture, **sizes)
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.ones(64, BLOCK, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        output = model.base_model(input_ids=ids).last_hidden_state
    assert output.requires_grad
    found = cost.memory_per_token(on_meta(architecture, **sizes), precision)
    assert 0.5 < found / (sum(kept.values()) / ids.numel()) < 2
