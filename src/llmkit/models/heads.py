"""What makes logits of a model's last hidden states: a matrix and nothing else, or whatever its
head does on the way. Both are checked on the model itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

FACTOR = 1000.0
"""Small logits pass a soft cap unchanged: the check makes them large."""

TOLERANCE = 1e-3
"""Largest difference of logits that rounding may cause."""


class Head:
    """The head of a model by itself: its own forward pass over a body that only hands on what it is
    given, so whatever the model does to its logits (a transform, a scale, a soft cap) is done."""

    def __init__(self, model: PreTrainedModel, output: type) -> None:
        """`output` is what the body returns. All weights are shared with the model."""
        self._model = copy.copy(model)
        self._model._modules = {**model._modules, model.base_model_prefix: _Handing(output)}

    def __call__(self, hidden: Tensor) -> Tensor:
        """[batch, places, hidden] -> logits [batch, places, vocabulary]."""
        logits: Tensor = self._model(inputs_embeds=hidden).logits
        return logits


@torch.no_grad()
def split(model: PreTrainedModel) -> Head | None:
    """The head of a model, or None where body and head apart do not give the model's logits."""
    if model.base_model_prefix not in model._modules:
        return None
    training = model.training
    model.eval()
    ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    try:
        own = model(input_ids=ids).logits
        body = model.base_model(input_ids=ids)
        head = Head(model, type(body))
        logits = head(body[0])
    # A head that needs more than hidden states fails in whatever way it likes.
    except Exception:
        return None
    finally:
        model.train(training)
    agrees = logits.shape == own.shape and bool((logits - own).abs().max() < TOLERANCE)
    return head if agrees else None


class _Handing(nn.Module):
    """Stands where the body was, and hands on hidden states that are already there."""

    def __init__(self, output: type) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return self.output(last_hidden_state=inputs_embeds)


@torch.no_grad()
def is_linear(model: PreTrainedModel) -> bool:
    """Whether the output layer alone gives the model's logits from its last hidden states."""
    head = model.get_output_embeddings()
    body = model.base_model
    if body is model or not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    training, weight = model.training, head.weight.detach().clone()
    model.eval()
    head.weight.mul_(FACTOR)
    ids = torch.arange(6, device=model.device)[None] % model.config.vocab_size  # [1, 6]
    try:
        logits = model(input_ids=ids, use_cache=False).logits
        alone = head(body(input_ids=ids, use_cache=False).last_hidden_state)
    finally:
        head.weight.copy_(weight)
        model.train(training)
    return bool(torch.allclose(logits, alone, rtol=1e-4, atol=1e-5))
