"""Which weights are hidden matrices: what Muon orthogonalises, all others being left to AdamW."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from llmkit.training.muon import Halves


def hidden(model: nn.Module) -> dict[str, Halves | None]:
    """Names of the matrices between the embeddings and the output layer, and of the stacks of them
    that experts are, each with how it holds two matrices where it does.

    A matrix is the weight of a linear layer; a stack has three dimensions and is no convolution.
    Both have more than one row and column. Routers and the output layer choose among rows, as
    embeddings do, and are not included.
    """
    outside = {id(weight) for weight in (*_head(model), *_routers(model))}
    found: dict[str, Halves | None] = {}
    for name, weight in model.named_parameters():
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        inside = weight.requires_grad and id(weight) not in outside
        if inside and (_is_matrix(module, weight) or _is_stack(module, weight)):
            found[name] = _halves(module, own)
    return found


def _is_matrix(module: nn.Module, weight: Tensor) -> bool:
    linear = isinstance(module, nn.Linear | Conv1D)  # this Conv1D is GPT-2's linear layer
    return linear and weight.ndim == 2 and min(weight.shape) > 1


def _is_stack(module: nn.Module, weight: Tensor) -> bool:
    return (
        not isinstance(module, _ConvNd | nn.Embedding)
        and weight.ndim == 3
        and min(weight.shape[1:]) > 1
    )


def _head(model: nn.Module) -> Iterator[Tensor]:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for module in [head, *embeddings] if head is not None else embeddings:
        yield from module.parameters()  # a linear layer may share the weight of an embedding


def _routers(model: nn.Module) -> Iterator[Tensor]:
    """The matrices that choose among experts: beside so many experts, whether in a stack or in a
    list, stands a part of the model whose every matrix has a row for each."""
    for block in model.modules():
        counts = {number for child in block.children() for number in _experts(child)}
        for child in block.children():
            matrices = [weight for weight in child.parameters() if weight.ndim == 2]
            if matrices and all(len(weight) in counts for weight in matrices):
                yield from matrices


def _experts(module: nn.Module) -> Iterator[int]:
    if isinstance(module, nn.ModuleList):
        yield len(module)
    for weight in module.parameters(recurse=False):
        if _is_stack(module, weight):
            yield len(weight)


def _halves(module: nn.Module, name: str) -> Halves | None:
    """transformers says how its experts hold `gate` and `up`."""
    if name != "gate_up_proj" or not getattr(module, "has_gate", False):
        return None
    return Halves(-1 if module.is_transposed else -2, alternate=not module.is_concatenated)
