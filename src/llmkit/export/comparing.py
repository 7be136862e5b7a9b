"""Compare a model with the same model read back in another form, on a few texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from llmkit.export.texts import probe_texts

_TEXTS, _TOKENS = 24, 64
"""Number of texts, and tokens of each, whose outputs are compared."""


def probe_ids(tokenizer: PreTrainedTokenizerFast, longest: int) -> list[torch.Tensor]:
    """The ids [1, tokens] of some texts of `probe_texts`."""
    found = (tokenizer(text)["input_ids"] for text in probe_texts(tokenizer))
    rows = [ids[: min(_TOKENS, longest)] for ids in found if ids]
    return [torch.tensor([ids]) for ids in rows[:_TEXTS]]


@torch.no_grad()
def compare_outputs(model: nn.Module, other: nn.Module, rows: list[torch.Tensor]) -> dict[str, Any]:
    """The largest difference of logits, relative to the largest logit or 1, and the share of rows,
    or tokens, whose largest logit is the same."""
    largest, same = 0.0, []
    for ids in rows:
        wanted = model(input_ids=ids).logits.float()
        found = other(input_ids=ids).logits.float()
        distance = (found - wanted).abs().max() / wanted.abs().max().clamp(min=1)
        # A NaN is beyond every bound.
        largest = max(largest, float(distance.nan_to_num(nan=float("inf"))))
        same.append((found.argmax(-1) == wanted.argmax(-1)).flatten())
    return {
        "texts": len(rows),
        "largest_difference": largest,
        "same_largest_output": float(torch.cat(same).double().mean()),
    }
