"""How much of a machine's arithmetic a run uses: what it could do, and what a model asks for."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from llmkit.training.module import Objective
from llmkit.training.tasks import Examples, on_device

RATE_SECONDS = 0.06

Shape = tuple[int, ...]


def matrix_rate(device: torch.device, precision: str) -> float:
    """Operations per second of a large matrix product on this device, the best in RATE_SECONDS: the
    choice of a model hangs on it, and other programs take a core for some hundredths."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side = 1024 if device.type == "cpu" else 8192
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    times: list[float] = []
    while len(times) < 3 or sum(times) < RATE_SECONDS:
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def wait(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
