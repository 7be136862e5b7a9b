"""The logits of chosen places, without those of all the others: a vocabulary is wide."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.models import heads, rope

ENTRIES = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits that exist at once, whatever the batch: on a CPU they should stay in its caches."""

FEWEST_PLACES = 128
"""Places whose logits are made at once at least: fewer would read a wide head again and again."""


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
        self.head = heads.split(model)
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
