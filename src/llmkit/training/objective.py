"""A model with its loss as one module, made quick: attention, and what of it is compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmkit.models import logits
from llmkit.models.kernels import attention
from llmkit.training.tasks.task import Batch, Loss


def quick(loss: Loss, model: PreTrainedModel, device: torch.device) -> Objective:
    """The model with its loss on a device, with attention that is quick there."""
    attention.use_blockwise(model, device)
    return Objective(loss, model.to(device))


class Objective(nn.Module):
    """A model with its loss as one module, so that distributing takes in the loss."""

    model: Any

    def __init__(self, loss: Loss, model: nn.Module) -> None:
        super().__init__()
        self.loss, self.model = loss, model
        self._compiled: dict[nn.Module, Callable[..., Any]] = {}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss's sums over the batch."""
        return self.loss.sums(self.model, batch)

    def compile_layers(self, dynamic: bool = False) -> None:
        """Has `compiled` run compiled layers, which are alike: what is compiled for one serves all,
        in half the time that the whole model takes; and parts of the loss."""
        self._compiled = {
            layer: torch.compile(
                layer._call_impl, dynamic=dynamic, options={"fallback_random": True}
            )
            for layer in logits.layers_of(self.model)
        }
        for part in self.loss.compilable:  # the last call may have a shorter input
            self._compiled[part] = torch.compile(part._call_impl, dynamic=None)

    def compile_nothing(self) -> None:
        """Undoes `compile_layers`."""
        self._compiled = {}

    @contextlib.contextmanager
    def compiled(self) -> Iterator[None]:
        """Forward and backward passes within run what is compiled, if anything is. All others, such
        as a validation's, would be compiled anew, which would not pay."""
        for part, quick in self._compiled.items():
            part._compiled_call_impl = quick
        try:
            yield
        finally:
            for part in self._compiled:
                part._compiled_call_impl = None
