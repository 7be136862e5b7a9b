"""Dropout whose masks depend on the examples, not on the batch in which they are computed.

Whether an element is dropped depends on a seed, its example, the number of earlier dropouts in the
forward pass, and its coordinates within the example. Micro-batches, processes, padding and the
other rows of a batch do not change it.

Replaces `functional.dropout` and `scaled_dot_product_attention` while a step is computed. Gain: no
loss depends on the batch, in 0.86 of the time of masks drawn for a micro-batch (decision 0024). To
delete it: seed torch's generator where `of_examples` is entered, in the engine and the probe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

DROPOUT_LEVELS = 1 << 15
"""An element is dropped with the probability k / DROPOUT_LEVELS nearest to the requested one, and
the others are scaled to match it exactly, so that the expectation does not change."""

_LANES = 4
"""Elements that share one 64-bit random number, 16 bits each."""

_GOLDEN = 0x1E3779B97F4A7C15
_STEPS = torch.tensor(
    [
        0x3F58476D1CE4E5B9, 0x14D049BB133111EB, 0x2545F4914F6CDD1D, 0x369DEA0F31A53F85,
        0x0B5AD4ECEDA1CE2B, 0x5851F42D4C957F2D, 0x1D872B41C3D7C2A9,
    ]
)  # fmt: skip

_FACTORS = (0xFF51AFD7ED558CCD - (1 << 64), 0xC4CEB9FE1A85EC53 - (1 << 64), 0x2545F4914F6CDD1D)

_torch_dropout = functional.dropout
_torch_attention = functional.scaled_dot_product_attention


BATCH_DEPENDENT = ("xlnet", "funnel", "big_bird")
"""Model types whose masks still depend on the batch: in the first two it is not the first
dimension, and the last draws its attention with numpy."""


class _Rows:
    """The rows of the current batch."""

    keys: Tensor
    """[rows]"""
    steps: Tensor
    """The increment of a counter along each dimension; a tensor, since the compiler computes
    products of an index and such large constants wrongly."""


@contextmanager
def of_examples(seed: int, examples: NDArray[np.int64], device: torch.device) -> Iterator[None]:
    """Within this context, dropout draws the masks of a batch whose rows are these examples.

    Run both the forward and the backward pass inside, since recomputed activations need the same
    masks. The first dimension of a dropped tensor must be the rows, or a multiple of them. Covers
    `torch.nn.functional.dropout` and `scaled_dot_product_attention`, on which the layers of torch
    and transformers are built. torch's own generator is seeded too: it numbers the dropouts,
    because gradient checkpointing and torch.compile restore it.
    """
    torch.manual_seed(seed)
    keys = _mix_bits(torch.from_numpy(examples.astype(np.int64)) * _GOLDEN + seed)
    _Rows.keys, _Rows.steps = keys.to(device), _STEPS.to(device)
    with (
        patch.object(functional, "dropout", dropout),
        patch.object(functional, "scaled_dot_product_attention", attention_with_dropout),
    ):
        yield


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Replaces `torch.nn.functional.dropout`: input of any shape, rows first."""
    dropped = round(p * DROPOUT_LEVELS)
    if not training or not 0 < dropped < DROPOUT_LEVELS:
        return _torch_dropout(input, p, training, inplace)
    mask = _keep_mask(input.shape, dropped, input.device).to(input.dtype)
    mask *= DROPOUT_LEVELS / (DROPOUT_LEVELS - dropped)
    return input.mul_(mask) if inplace else input * mask


def attention_with_dropout(  # noqa: PLR0913 (torch's own names)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Replaces `scaled_dot_product_attention`, whose kernels draw their own masks: query [batch,
    heads, queries, width], key and value [batch, key heads, keys, width]."""
    if dropout_p == 0:
        return _torch_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if is_causal:
        shape = query.shape[-2], key.shape[-2]
        attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * scale, key.transpose(-1, -2))  # [batch, heads, queries, keys]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)
    return torch.matmul(dropout(weights, dropout_p), value)


def _keep_mask(shape: torch.Size, dropped: int, device: torch.device) -> Tensor:
    """An integer mask of this shape: 1 where an element is kept, 0 where it is dropped."""
    width = shape[-1] if len(shape) > 1 else 1
    words = _mix_bits(_counters(shape, -(-width // _LANES), device))
    if torch.compiler.is_compiling():  # fused into one loop, unlike a view of another type
        shifts = torch.arange(0, 16 * _LANES, 16, device=device)
        draws = (words[..., None] >> shifts).flatten(-2) & (DROPOUT_LEVELS - 1)
        kept = (draws >= dropped).to(torch.int16)
    else:  # in place: memory bandwidth limits it, and a comparison is slow
        kept = (
            words.view(torch.int16).bitwise_and_(DROPOUT_LEVELS - 1).sub_(dropped - 1).clamp_(0, 1)
        )
    return kept[..., :width].reshape(shape)


def _counters(shape: torch.Size, n_words: int, device: torch.device) -> Tensor:
    """A counter for each word of random bits, [rows, ..., words]; it depends on the example and the
    word's coordinates within it, not on the shape."""
    rows, n = _Rows.keys, shape[0] if len(shape) else 1
    if n % len(rows):  # shared by all rows
        rows = torch.zeros(1, dtype=torch.int64, device=device)
    counters = rows + torch.randint(1 << 62, (), device=device)
    sizes = [n // len(rows), *shape[1:-1], n_words]
    for dimension, size in enumerate(sizes):
        along = torch.arange(size, device=device) * _Rows.steps[dimension]
        counters = counters[..., None] + along
    return counters.flatten(0, 1)


def _mix_bits(values: Tensor) -> Tensor:
    """Mixes every bit into all others, in place: MurmurHash3's finaliser, with a third product
    instead of its last shift, which would leave the sign bit of signed numbers always 0."""
    first, second, third = _FACTORS
    values *= first
    values ^= values >> 33
    values *= second
    values ^= values >> 33
    values *= third
    return values
