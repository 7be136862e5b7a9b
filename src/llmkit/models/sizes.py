"""The settings of a new model with a given number of parameters."""

from __future__ import annotations

from typing import Any

import torch

from llmkit.config.types import parameters_of
from llmkit.errors import ConfigError
from llmkit.models import build
from llmkit.models.build import Purpose

WIDTH_PER_LAYER = 64
"""Hidden size per layer: models of all sizes have about these proportions (Kaplan et al. 2020,
arXiv 2001.08361, figure 5: the loss hardly depends on them)."""
TOLERANCE = 0.1
"""Largest deviation from the number of parameters, as a fraction of it."""
_LARGEST = 16384
_SPECIAL = {f"{name}_token_id": 0 for name in ("pad", "cls", "sep", "bos", "eos")}
"""Ids that every vocabulary has; they change no size."""


def settings_of_size(
    size: str,
    architecture: str,
    asked: dict[str, Any],
    vocab_size: int,
    length: int,
    purpose: Purpose = build.LANGUAGE_MODEL,
) -> dict[str, Any]:
    """Completes the settings of a new model so that it has about as many parameters as `size`
    states, embeddings included.

    Raises ConfigError if no width and depth give this number: it is too small for the vocabulary,
    or `asked` settings fix the size.
    """
    wanted = parameters_of(size)

    def filled(width: int) -> dict[str, Any]:
        layers = max(2, round(width / WIDTH_PER_LAYER))
        return build.fill_settings(architecture, asked, purpose, width, layers)

    def count(width: int) -> int:
        how = (filled(width), vocab_size, length, _SPECIAL, purpose)
        with torch.device("meta"):
            made = build.new_model(build.model_config(architecture, *how), 0, purpose)
        return int(made.num_parameters())

    low, high = 1, _LARGEST // 8  # of the width in steps of 8
    while low < high:  # the first width that has at least as many parameters
        middle = (low + high) // 2
        if count(8 * middle) < wanted:
            low = middle + 1
        else:
            high = middle
    widths = [8 * step for step in range(max(1, low - 8), low + 9)]
    even = [width for width in widths if width % _multiple(width) == 0] or widths
    sizes = {width: count(width) for width in sorted({*even, 8 * low, max(8, 8 * low - 8)})}
    best = min(even, key=lambda width: abs(sizes[width] - wanted))
    if abs(sizes[best] - wanted) > TOLERANCE * wanted:
        best = min(sizes, key=lambda width: abs(sizes[width] - wanted))
    if abs(sizes[best] - wanted) > TOLERANCE * wanted:
        raise ConfigError(
            f"no {architecture} model with {vocab_size:,} tokens has about {wanted:,} parameters; "
            f"the nearest has {sizes[best]:,}",
            where="model.size",
            next="write a larger size, or a smaller tokenizer.vocab_size",
        )
    return filled(best)


def _multiple(width: int) -> int:
    """What the width should be a multiple of: steps of at most a sixteenth, and rounder numbers for
    larger widths, which hardware computes faster."""
    return next((step for step in (128, 64, 32, 16) if width >= 16 * step), 8)
