"""Muon with the matrices of one shape orthogonalised together.

The same steps as torch's own, in a third of the time if there are many small matrices; in fp32 on
devices that only emulate bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from llmkit.distributed import device
from llmkit.training.shards import parts
from llmkit.training.shards.owners import by_owners

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Newton-Schulz polynomial of Jordan et al. 2024 (kellerjordan.github.io/posts/muon)."""

ITERATIONS = 5


class Halves(NamedTuple):
    """How a weight holds two matrices, like `gate` and `up` of experts."""

    dim: int
    """-2 if they share columns, -1 if they share rows."""
    alternate: bool
    """Whether their rows or columns alternate instead of being concatenated."""

    @property
    def axis(self) -> int:
        """The axis that indexes the halves after `dim` is split into two axes."""
        return self.dim if self.alternate else self.dim - 1


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalised Nesterov momentum of each matrix.

    A matrix is a weight of two dimensions, each slice of a stack of matrices, or each half if a
    group has `halves`. The step is 0.2 sqrt(max(rows, columns)) times the learning rate, so that
    its root mean square is AdamW's and AdamW's learning rate fits (Liu et al. 2025, arXiv
    2502.16982). Equals torch.optim.Muon with `adjust_lr_fn="match_rms_adamw"`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "halves": None}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every matrix that has a gradient."""
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None]
            for alike in _by_shape(matrices):
                self._move(alike, group)

    def _move(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        # Everything but the directions is computed by element, on the part of this process.
        buffers = [parts.local(self.state[matrix]["momentum_buffer"]) for matrix in matrices]
        own_gradients = [parts.local(gradient) for gradient in gradients]
        torch._foreach_lerp_(buffers, own_gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(own_gradients, buffers, group["momentum"])
        shape = _apart(torch.empty(1, *matrices[0].shape, device="meta"), group["halves"]).shape
        size = 0.2 * max(shape[-2:]) ** 0.5 * group["lr"]
        directions = _own_directions(torch.stack(list(updates)), matrices[0], group["halves"])
        own = [parts.local(matrix) for matrix in matrices]
        torch._foreach_mul_(own, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(own, list(directions.to(own[0].dtype).unbind()), alpha=-size)


def orthogonal(matrices: Tensor) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices [n, rows, columns], in bf16 if that is fast.

    Five Newton-Schulz iterations bring all singular values to between about 0.7 and 1.2.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16() if device.has_bf16(matrices.device) else matrices.float()
    x = x.mT.contiguous() if tall else x  # [n, short, long]
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _own_directions(updates: Tensor, like: Tensor, halves: Halves | None) -> Tensor:
    """The part of this process of the orthogonalised updates [weights, .., rows, columns], of
    weights that are divided like one of them: a process holds some rows of each matrix, or whole
    matrices of each stack."""
    if isinstance(like, DTensor) and like.ndim == 2:
        return by_owners(updates, like, partial(_directions, halves=halves))
    return _directions(updates, halves) if updates.numel() else updates


def _directions(updates: Tensor, halves: Halves | None) -> Tensor:
    """The orthogonalised updates [weights, .., rows, columns]."""
    apart = _apart(updates, halves)
    found = orthogonal(apart.flatten(0, -3)).reshape(apart.shape)
    if halves is None:
        return found
    return found.movedim(0, halves.axis).flatten(halves.dim - 1, halves.dim)


def _apart(updates: Tensor, halves: Halves | None) -> Tensor:
    """The updates as single matrices [.., rows, columns]: halves become the first axis."""
    if halves is None:
        return updates
    *before, length = updates.shape[: updates.ndim + halves.dim + 1]
    both = (length // 2, 2) if halves.alternate else (2, length // 2)
    split = updates.reshape(*before, *both, *updates.shape[updates.ndim + halves.dim + 1 :])
    return split.movedim(halves.axis, 0)


def _by_shape(matrices: list[Tensor]) -> Iterable[list[Tensor]]:
    groups: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        groups.setdefault(matrix.shape, []).append(matrix)
    return groups.values()


def hidden(model: nn.Module) -> dict[str, Halves | None]:
    """Names of the matrices and stacks of matrices (experts) between the embeddings and the output
    layer, each with its halves, if any.

    A matrix is the weight of a linear layer; a stack has three dimensions and is not a
    convolution. Both have more than one row and column. Routers and the output layer choose among
    rows, like embeddings, and are not included.
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
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    modules += [each for name, each in model.named_modules() if name.endswith("seq_relationship")]
    for module in [head, *modules] if head is not None else modules:
        yield from module.parameters()  # a linear layer may share the weight of an embedding


def _routers(model: nn.Module) -> Iterator[Tensor]:
    """The matrices that choose among experts: next to a stack or list of experts, modules whose
    every matrix has one row per expert."""
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
    """The layout of `gate` and `up` in transformers' experts."""
    if name != "gate_up_proj" or not getattr(module, "has_gate", False):
        return None
    return Halves(-1 if module.is_transposed else -2, alternate=not module.is_concatenated)
