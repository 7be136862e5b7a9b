"""The head of a regression, which predicts in the unit of its labels.

A model learns numbers around 0 with a spread of 1; labels may be prices or years. The head is
therefore initialised to the mean and spread of the labels, and its learning rate, weight decay and
loss are measured in that spread: training is that on standardised labels, and the saved weights
give plain numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel


class NumberHead(nn.Linear):
    """The last linear layer of a regression, computed in fp32 whatever the precision around it:
    the mean of the labels would cost a bf16 number all its digits."""

    unit: float = 1.0
    """The spread of the labels that it learns; 1 for a finished one."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., hidden] -> [..., 1] in the unit of the labels."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def keep_digits(model: PreTrainedModel) -> NumberHead:
    """The last linear layer of a regression, which computes in fp32 from now on."""
    [*_, last] = _linears(model)
    last.__class__ = NumberHead
    assert isinstance(last, NumberHead)
    return last


def fit_head(model: PreTrainedModel, labels: NDArray[Any], is_new: bool) -> None:
    """Measures the last layer in the spread of the labels [rows]; a new one begins at their mean.

    A layer without bias (decoders have none) cannot hold the mean: it takes the root mean square
    as its unit.
    """
    last = keep_digits(model)
    mean = float(labels.mean(dtype=np.float64)) if last.bias is not None else 0.0
    unit = float(np.sqrt(np.square(labels.astype(np.float64) - mean).mean())) or 1.0
    last.unit = unit
    if is_new:
        with torch.no_grad():
            last.weight.mul_(unit)
            if last.bias is not None:
                last.bias.mul_(unit).add_(mean)


def unit_of(model: nn.Module) -> float:
    """The unit in which the head of a regression predicts; 1 for any other model."""
    return next((module.unit for _, module in _number_heads(model)), 1.0)


def units(model: nn.Module) -> dict[str, float]:
    """The unit of each weight of the head, by its name; nothing for any other model."""
    return {
        f"{name}.{leaf}": module.unit
        for name, module in _number_heads(model)
        for leaf, _ in module.named_parameters()
    }


def _number_heads(model: nn.Module) -> Iterator[tuple[str, NumberHead]]:
    for name, module in model.named_modules():
        if isinstance(module, NumberHead):
            yield name, module


def _linears(model: PreTrainedModel) -> Iterator[nn.Linear]:
    """The linear layers above the body that give the numbers, of which ours have one."""
    for name, module in model.named_modules():
        above = not name.startswith(f"{model.base_model_prefix}.")
        count = model.config.num_labels
        if above and isinstance(module, nn.Linear) and module.out_features == count:
            yield module
