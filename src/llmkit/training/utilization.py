"""How much arithmetic a model needs."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from llmkit.training.module import Objective
from llmkit.training.tasks.task import Examples, on_device

Shape = tuple[int, ...]


@torch.no_grad()
def operations(objective: Objective, examples: Examples, device: torch.device) -> float:
    """Operations that training asks for each prediction, as "PaLM" counts them (Chowdhery et al.
    2022, appendix B): three times those of the forward pass, all attention scores, no recomputing.
    """
    rows = [int(examples.longest_first()[0])]
    batch = on_device(examples.batch(rows), device)
    # torch's own table leaves attention on a CPU out.
    own = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        objective.forward(batch)
    return float(3 * counter.get_total_flops() / max(1, examples.count(rows)))


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Scores and their sums over values; shapes are [batch, heads, tokens, width]."""
    batch, heads, n, width = query
    return 2 * batch * heads * n * key[2] * (width + value[3])
