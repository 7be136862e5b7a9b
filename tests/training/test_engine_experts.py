"""Mixtures of experts: the load-balancing loss is that of the whole step."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from llmkit.models import logits
from llmkit.models.experts import balance
from llmkit.training import engine
from llmkit.training.tasks.causal import CausalLoss
from tests.training.conftest import Rows, tiny_model

KINDS = ["mixtral", "qwen3_moe"]
SHAPE = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.5}


class Padded(Rows):
    """Rows that tell where their padding is."""

    def batch(self, rows):
        batch = super().batch(rows)
        lengths = torch.tensor([self.lengths[row] if row >= 0 else 0 for row in rows])
        return {**batch, "real": torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]}


def model_of(kind: str, **settings):
    count = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts"}[kind]
    model = tiny_model(kind, **{count: 4, **SHAPE, **settings})
    with torch.no_grad():  # fresh routers are all alike
        for name, weight in model.named_parameters():
            if "gate.weight" in name:
                weight.mul_(20)
    return model


def task_of(model) -> CausalLoss:
    return CausalLoss(100, logits.has_linear_head(model), balance.balance_of(model))


@pytest.fixture
def gradients(trial, monkeypatch):
    """What the first step of a run leaves in the weights, before it is clipped, and its metrics."""

    def of(name: str, kind: str, **settings):
        found = {}

        def keep(weights, *_, **__):
            found.update({i: w.grad.clone() for i, w in enumerate(weights)})
            return torch.zeros(())

        monkeypatch.setattr(nn.utils, "clip_grad_norm_", keep)
        monkeypatch.setattr(engine.nn.utils, "clip_grad_norm_", keep)
        model = settings.pop("model", None) or model_of(kind)
        run = trial(
            name, model=model, task=task_of(model), examples=Padded(40), steps=1, validation=None,
            **settings,
        )  # fmt: skip
        run.run()
        line = json.loads((run.directory / "metrics.jsonl").read_text().splitlines()[0])
        return found, line, run

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_transformers_loss_over_the_whole_step(gradients, kind) -> None:
    found, line, run = gradients("a", kind, micro_batch=3)
    model, batch = model_of(kind), run.examples.batch(range(8))
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["real"].long(),
        output_router_logits=True,
    )
    loss = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), batch["targets"].flatten())
    (loss + SHAPE["router_aux_loss_coef"] * outputs.aux_loss).backward()
    for ours, weight in zip(found.values(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, weight.grad, rtol=1e-5, atol=1e-7)
    assert line["train_loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert line["router_aux_loss"] == pytest.approx(outputs.aux_loss.item(), rel=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_micro_batch_size_changes_no_gradient(gradients, kind, dropout) -> None:
    def model():
        return model_of(kind, attention_dropout=dropout)

    whole, line, _ = gradients("whole", kind, model=model())
    for size in (1, 2, 5):
        parts, other, _ = gradients(f"parts {size}", kind, model=model(), micro_batch=size)
        for one, two in zip(whole.values(), parts.values(), strict=True):
            assert float((one - two).abs().max() / one.abs().max()) < 2e-6
        assert line == pytest.approx(other, rel=1e-6)
