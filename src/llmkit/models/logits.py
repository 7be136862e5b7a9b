"""Split a model into its layers, body and head, and compute logits only at chosen positions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmkit.models import rope

FACTOR = 1000.0
"""Scales the logits in a check: a soft cap leaves small logits unchanged."""

_TOLERANCE = 1e-3
"""Largest difference of logits that rounding may cause."""

ENTRIES = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits held at once, regardless of the batch: on a CPU they should fit into its caches."""

FEWEST_PLACES = 128
"""Minimum number of positions per chunk: smaller chunks would read a wide head too often."""


class LogitsHead:
    """Computes the logits of a model from hidden states.

    It runs the model's own forward pass with a body that passes its input through, so that whatever
    the model does to its logits (a transform, a scale, a soft cap) is applied.
    """

    def __init__(self, model: PreTrainedModel, output: type) -> None:
        """`output` is the type that the body returns. All weights are shared with the model."""
        self._model = copy.copy(model)
        self._model._modules = {**model._modules, model.base_model_prefix: _PassThroughBody(output)}

    def __call__(self, hidden: Tensor) -> Tensor:
        """[batch, places, hidden] -> logits [batch, places, vocabulary]."""
        logits: Tensor = self._model(inputs_embeds=hidden).logits
        return logits


@torch.no_grad()
def split_head(model: PreTrainedModel) -> LogitsHead | None:
    """The head of a model, or None if body and head, run separately, differ from the model."""
    if model.base_model_prefix not in model._modules:
        return None
    training = model.training
    model.eval()
    ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    try:
        own = model(input_ids=ids).logits
        body = model.base_model(input_ids=ids)
        head = LogitsHead(model, type(body))
        logits = head(body[0])
    # A head that needs more than hidden states may raise anything.
    except Exception:
        return None
    finally:
        model.train(training)
    agrees = logits.shape == own.shape and bool((logits - own).abs().max() < _TOLERANCE)
    return head if agrees else None


class _PassThroughBody(nn.Module):
    """Replaces the body, and returns the given hidden states."""

    def __init__(self, output: type) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return self.output(last_hidden_state=inputs_embeds)


@torch.no_grad()
def has_linear_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its output layer applied to its last hidden states."""
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
    """Computes a model's logits at chosen positions: hidden states from its body, logits from its
    head (see `LogitsHead`).

    Construction checks on the model that this gives its logits. If it does not, all logits are
    computed, and the chosen ones selected.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        model.config.use_cache = False
        self.model = model
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.head = split_head(model)
        self.is_split = self.head is not None

    @property
    def entries(self) -> int:
        """Number of logits that the model's device should hold at once."""
        return ENTRIES.get(self.model.device.type, ENTRIES["cpu"])

    @property
    def chunk(self) -> int:
        """Number of positions whose logits are computed at once."""
        return max(FEWEST_PLACES, self.entries // self.vocab_size)

    def chunks(self, inputs: dict[str, Tensor], chosen: Tensor) -> Iterator[Tensor]:
        """Yields the logits [positions, vocabulary] of the chosen positions of a batch in chunks.

        `chosen` is bool [rows, columns], like `input_ids`; its positions come in reading order.
        """
        inputs = rope.with_positions(self.model, inputs)
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
    """The layers of a model: the modules of its outermost module lists, or its body without one."""
    return _listed(model) or [model.base_model]


def _listed(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in module.children():
        found += child if isinstance(child, nn.ModuleList) else _listed(child)
    return found
