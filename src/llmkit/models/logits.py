"""The parts of a model: its layers, its body, and the head that makes logits of hidden states; and
the logits of chosen places without those of all the others."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmkit.models import rope

FACTOR = 1000.0
"""Small logits pass a soft cap unchanged: the check makes them large."""

TOLERANCE = 1e-3
"""Largest difference of logits that rounding may cause."""

ENTRIES = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits that exist at once, whatever the batch: on a CPU they should stay in its caches."""

FEWEST_PLACES = 128
"""Places whose logits are made at once at least: fewer would read a wide head again and again."""


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
def split_head(model: PreTrainedModel) -> Head | None:
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
def has_linear_head(model: PreTrainedModel) -> bool:
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


class ChosenLogits:
    """A model as its body, which gives hidden states, and its head, which makes logits of them.

    The head is the model's own forward pass over a body that only hands on what it is given, so
    whatever the model does to its logits (a transform, a scale, a soft cap) is done. Whether this
    gives the model's logits is checked on the model; one that is made otherwise computes all of its
    logits, and the chosen ones are taken from them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        model.config.use_cache = False
        self.model = model
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.head = split_head(model)
        self.is_split = self.head is not None

    @property
    def entries(self) -> int:
        """Logits that the model's device should hold at once."""
        return ENTRIES.get(self.model.device.type, ENTRIES["cpu"])

    @property
    def chunk(self) -> int:
        """Places whose logits are made at once."""
        return max(FEWEST_PLACES, self.entries // self.vocab_size)

    def chunks(self, inputs: dict[str, Tensor], chosen: Tensor) -> Iterator[Tensor]:
        """The logits [places, vocabulary] of the chosen places of a batch, some places at once.

        `chosen` is bool [rows, columns], as `input_ids` are; its places come in reading order.
        """
        inputs = rope.placed(self.model, inputs)
        if self.head is None:
            yield from torch.split(self._logits(inputs)[chosen], self.chunk)
            return
        hidden = self.model.base_model(**inputs)[0]
        for some in torch.split(hidden[chosen], self.chunk):
            yield self.head(some[None])[0]

    def _logits(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(**inputs).logits
        return logits


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model, which stand in its outermost lists; its body where it has no list."""
    return _listed(model) or [model.base_model]


def _listed(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in module.children():
        found += child if isinstance(child, nn.ModuleList) else _listed(child)
    return found
