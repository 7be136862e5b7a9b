"""Dropout whose masks cost a CPU less than the layers around them do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """`nn.Dropout` that draws 16 bits for each element, four elements at a time.

    torch draws a float for each on one core, a tenth of what fine-tuning a small encoder takes.
    An element is dropped with the probability k / 65,536 that is nearest to `p`, and what is left
    is scaled by just that, so the expectation is exact. The masks come from torch's generator.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Elements of any shape, as many of them zero as `p` says; in training only."""
        dropped = round(self.p * LEVELS)
        plain = self.inplace or input.device.type != "cpu" or torch.compiler.is_compiling()
        if plain or not 0 < dropped < LEVELS or not self.training:
            return super().forward(input)
        n = input.numel()
        drawn = torch.empty(-(-n // 4), dtype=torch.int64).random_(
            torch.iinfo(torch.int64).min, None
        )
        bits = drawn.view(torch.int16)[:n].view(input.shape)
        keep = bits >= dropped - LEVELS // 2
        return input * (keep * (LEVELS / (LEVELS - dropped))).to(input.dtype)


def quicken(model: nn.Module) -> None:
    """Gives every plain dropout layer of the model these masks."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
