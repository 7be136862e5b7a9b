"""What a router needs to know of a domain, as sums: they are measured where the domain is, and add
up wherever its expert goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.models import rope
from llmkit.models.experts import twins


@dataclass(frozen=True)
class DomainStatistics:
    """Sums over the text of one domain, read by the expert of that domain."""

    frequency: Tensor
    """int64 [vocabulary], how often each token occurs in the training text."""
    tokens: int
    """Number of tokens in the following sums."""
    products: Tensor
    """fp64 [layers, hidden size, hidden size], the sum of x x' over the inputs x of each
    feed-forward network."""
    sums: Tensor
    """fp64 [layers, hidden size], the sum of x."""

    def tensors(self) -> dict[str, Tensor]:
        """The statistics by name, for a file."""
        return {
            "frequency": self.frequency,
            "tokens": torch.tensor(self.tokens),
            "products": self.products,
            "sums": self.sums,
        }

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> DomainStatistics:
        """The inverse of `tensors`."""
        return cls(
            tensors["frequency"], int(tensors["tokens"]), tensors["products"], tensors["sums"]
        )


@torch.no_grad()
def measure_domain(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], frequency: Tensor
) -> DomainStatistics:
    """The statistics of a domain, of which a dense model reads these batches.

    A batch holds `input_ids`, and optionally `position_ids` of isolated documents and `real`, a
    bool that is False at padding; all [rows, columns].
    """
    layers = twins.feed_forwards(model)
    width = int(model.config.hidden_size)
    products = torch.zeros(len(layers), width, width, dtype=torch.float64)
    sums = torch.zeros(len(layers), width, dtype=torch.float64)
    count, real = 0, torch.zeros(0, dtype=torch.bool)

    def add(layer: int, inputs: Tensor) -> None:
        # Products of fp32 are added up in fp64, a batch at a time.
        x = inputs.flatten(0, 1)[real.to(inputs.device)].float()
        products[layer] += (x.T @ x).double().cpu()
        sums[layer] += x.sum(0, dtype=torch.float64).cpu()

    hooks = [
        layer.register_forward_pre_hook(lambda _, given, number=number: add(number, given[0]))
        for number, layer in enumerate(layers)
    ]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            ids = batch["input_ids"]
            real = batch.get("real", torch.ones_like(ids, dtype=torch.bool)).flatten()
            count += int(real.sum())
            model.base_model(**rope.with_positions(model, dict(batch)), use_cache=False)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return DomainStatistics(frequency, count, products, sums)
