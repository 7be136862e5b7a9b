"""Cross entropy of a linear output layer without holding all logits: it needs memory for one chunk
of tokens, whatever the size of the vocabulary.

Replaces `functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")`. Gain: on two cores
half the time for a vocabulary of 8192. To delete it: write that line in `training/tasks/causal.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = {"cpu": 1 << 22}
"""Logits held at once, by device: 16 MB in fp32 fit into the cache of a CPU; on two cores this
takes half the time of all at once, for a vocabulary of 8192."""

MAX_LOGITS = 1 << 27
"""The same on any other device: 512 MB in fp32, for products large enough to occupy it."""

FEWEST_TOKENS = 128
"""Minimum number of tokens in a chunk, whatever the vocabulary: smaller products are slow."""


class LinearCrossEntropy(nn.Module):
    """The cross entropy of a linear output layer."""

    def __init__(self, ignored: int) -> None:
        """`ignored` is the target of tokens that do not count."""
        super().__init__()
        self.ignored = ignored
        self.chunk = Chunk(ignored)

    def forward(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """The cross entropy of `hidden @ weight.T` summed over tokens, in nats and fp32.

        `hidden` [tokens, width], `weight` [vocabulary, width], `targets` [tokens]. Products are
        computed in autocast's dtype if it is enabled, sums in fp32. The gradients are computed
        chunk by chunk with the loss, as in Hsu et al. 2024 (arXiv 2410.10989), so that backward
        only scales them.
        """
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            kind = torch.get_autocast_dtype(device)
            hidden, weight = hidden.to(kind), weight.to(kind)
        if torch.is_grad_enabled():
            loss: Tensor = _WithGradients.apply(hidden, weight, targets, self.chunk)  # type: ignore[no-untyped-call]
            return loss
        sums = [
            functional.cross_entropy(
                (part @ weight.T).float(), chosen, ignore_index=self.ignored, reduction="sum"
            )
            for part, chosen in _chunks(hidden, targets, len(weight))
        ]
        return torch.stack(sums).sum()


def linear_log_probabilities(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """[tokens], the log-probability of each target under `hidden @ weight.T`, in fp32.

    Backward computes the logits of a chunk again instead of keeping those of all tokens.
    """

    def chunk(part: Tensor, chosen: Tensor) -> Tensor:
        logits = functional.linear(part, weight).float()
        return -functional.cross_entropy(logits, chosen, reduction="none")

    parts = _chunks(hidden, targets, len(weight))
    found = [
        checkpoint(chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in parts
    ]
    return torch.cat(found)


class Chunk(nn.Module):
    """The loss of a chunk of tokens, as a module so that it can be compiled: a graph of all chunks
    would hold the logits of several."""

    def __init__(self, ignored: int) -> None:
        super().__init__()
        self.ignored = ignored

    def forward(
        self, hidden: Tensor, weight: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The summed loss of the chunk, and its gradients for `hidden` and `weight`."""
        log_probabilities = torch.log_softmax((hidden @ weight.T).float(), dim=1)
        scored = (targets != self.ignored)[:, None]  # [chunk, 1]
        index = targets.clamp(min=0)[:, None]
        loss = -(log_probabilities.gather(1, index) * scored).sum()
        # d loss / d logits = softmax - one at the target. In place: without compilation, it takes
        # the time of reading and writing the logits.
        gradient = log_probabilities.exp_()
        gradient.scatter_add_(1, index, -torch.ones_like(index, dtype=torch.float32))
        gradient = gradient.to(weight.dtype)
        return loss, (gradient @ weight) * scored, gradient.T @ (hidden * scored)


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: Chunk) -> Tensor:
        sums, to_hidden = [], []
        to_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for part, chosen in _chunks(hidden, targets, len(weight)):
            loss, by_hidden, by_weight = chunk(part, weight, chosen)
            sums.append(loss)
            to_hidden.append(by_hidden)
            to_weight += by_weight
        ctx.save_for_backward(torch.cat(to_hidden), to_weight.to(weight.dtype))
        return torch.stack(sums).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        to_hidden, to_weight = ctx.saved_tensors
        return to_hidden * gradients[0], to_weight * gradients[0], None, None


def _chunks(hidden: Tensor, targets: Tensor, vocabulary: int) -> list[tuple[Tensor, Tensor]]:
    size = max(FEWEST_TOKENS, CHUNK_LOGITS.get(hidden.device.type, MAX_LOGITS) // vocabulary)
    return list(zip(torch.split(hidden, size), torch.split(targets, size), strict=True))
