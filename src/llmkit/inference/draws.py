"""From logits to a token: the shaping of the distribution, and the draw from it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from llmkit.config.schema import GenerationConfig

RULED_OUT = float("-inf")
"""Logit of a token that may not come."""


def warpers(settings: GenerationConfig) -> LogitsProcessorList:
    """What shapes the distribution of any row alike, in transformers' order: temperature, top-k,
    top-p, min-p, typical-p."""
    shaping = LogitsProcessorList()
    if not settings.do_sample:
        return shaping
    if settings.temperature != 1.0:
        shaping.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        shaping.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        shaping.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        shaping.append(MinPLogitsWarper(settings.min_p))
    if settings.typical_p < 1.0:
        shaping.append(TypicalLogitsWarper(settings.typical_p))
    return shaping


def draw(scores: Tensor, uniforms: Tensor) -> Tensor:
    """One token for each row of `scores` [rows, vocabulary]: where the row's number from [0, 1)
    falls in its cumulative probability.

    In float64: in float32 the sum over a large vocabulary loses the rarest tokens. A token of
    probability zero is never drawn.
    """
    cumulative = scores.double().softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    # Rounding may lift the product to the total itself, beyond the last token.
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, -total))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)
