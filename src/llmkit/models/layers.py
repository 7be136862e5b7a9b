"""The layers of a model."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def of(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model, which stand in its outermost lists; its body where it has no list."""
    return _listed(model) or [model.base_model]


def _listed(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in module.children():
        found += child if isinstance(child, nn.ModuleList) else _listed(child)
    return found
