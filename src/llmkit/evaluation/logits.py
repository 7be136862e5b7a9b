"""The logits of chosen places, without those of all the others: a vocabulary is wide."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ENTRIES = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits that exist at once, whatever the batch: on a CPU they should stay in its caches."""

FEWEST_PLACES = 128
"""Places whose logits are made at once at least: fewer would read a wide head again and again."""

_TOLERANCE = 1e-3


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
        self.head = _head(model)
        self.is_split = self.head is not None and self._agrees()

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
        if not self.is_split:
            yield from torch.split(self._logits(inputs)[chosen], self.chunk)
            return
        hidden = self.model.base_model(**inputs)[0]
        for some in torch.split(hidden[chosen], self.chunk):
            yield self._of_hidden(some)

    def _of_hidden(self, hidden: Tensor) -> Tensor:
        """[places, hidden] -> [places, vocabulary]."""
        assert self.head is not None
        self.head.given.hidden = hidden[None]
        placeholder = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        logits: Tensor = self.head(input_ids=placeholder).logits[0]
        return logits

    def _logits(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(**inputs).logits
        return logits

    @torch.no_grad()
    def _agrees(self) -> bool:
        ids = torch.arange(8, device=self.model.device)[None] % self.vocab_size
        own = self._logits({"input_ids": ids})[0]
        try:
            hidden = self.model.base_model(input_ids=ids)[0]
            split = self._of_hidden(hidden[0])
        # A head that needs more than hidden states fails in whatever way it likes.
        except Exception:
            return False
        return split.shape == own.shape and bool((split - own).abs().max() < _TOLERANCE)


class _Given(nn.Module):
    """Stands where the body was, and gives hidden states that are already there."""

    def __init__(self, output: type) -> None:
        super().__init__()
        self.output = output
        self.hidden: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output(last_hidden_state=self.hidden)


def _head(model: PreTrainedModel) -> Any:
    """A model that shares all weights with this one, without its body; None where it has none."""
    name = model.base_model_prefix
    if name not in model._modules:
        return None
    head = copy.copy(model)
    ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    with torch.no_grad():
        output = model.base_model(input_ids=ids)
    given = _Given(type(output))
    head._modules = {**model._modules, name: given}
    object.__setattr__(head, "given", given)
    return head
