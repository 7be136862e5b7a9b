"""A model and its loss as one module, with fast attention and compiled layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmkit.models import logits
from llmkit.models.kernels import attention
from llmkit.training.forecast import compiling
from llmkit.training.tasks.task import Batch, Loss


def quick(loss: Loss, model: PreTrainedModel, device: torch.device) -> LossModule:
    """The model and its loss, with the fastest attention for a device."""
    attention.use_blockwise(model, device)
    return LossModule(loss, model)


class LossModule(nn.Module):
    """A model and its loss as one module, so that DDP wraps the loss too."""

    model: Any

    def __init__(self, loss: Loss, model: nn.Module) -> None:
        super().__init__()
        self.loss, self.model = loss, model
        self._compiled: dict[nn.Module, Callable[..., Any]] = {}
        self._made: dict[bool, dict[nn.Module, Callable[..., Any]]] = {}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The sums of the loss over the batch."""
        return self.loss.sums(self.model, batch)

    def compile_layers(self, dynamic: bool = False) -> None:
        """Let `compiled` run compiled layers and parts of the loss.

        Layers are alike, so one compilation serves all, in half the time of the whole model.
        """
        if dynamic not in self._made:
            compiling.code_directory()
            made: dict[nn.Module, Callable[..., Any]] = {
                layer: torch.compile(
                    layer._call_impl, dynamic=dynamic, options={"fallback_random": True}
                )
                for layer in logits.layers_of(self.model)
            }
            for part in self.loss.compilable:  # the last call may have a shorter input
                made[part] = torch.compile(part._call_impl, dynamic=None)
            self._made[dynamic] = made
        self._compiled = self._made[dynamic]

    def compile_nothing(self) -> None:
        """Undo `compile_layers`, whose code is kept for its next call."""
        self._compiled = {}

    @contextlib.contextmanager
    def compiled(self) -> Iterator[None]:
        """A context in which forward and backward passes run compiled code, if there is any.

        Other passes, such as those of validation, would need another compilation, which does not
        pay.
        """
        for part, quick in self._compiled.items():
            part._compiled_call_impl = quick
        try:
            yield
        finally:
            for part in self._compiled:
                part._compiled_call_impl = None
