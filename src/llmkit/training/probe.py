"""Probe the model on this machine before the first step: which batch fits, and how fast it is.

Gradients are discarded and the random generator is seeded again at every step, so that probing
changes no result.
"""

from __future__ import annotations

import math
import time
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from llmkit.distributed.device import in_training, wait_for
from llmkit.distributed.failures import out_of_memory, too_large
from llmkit.distributed.processes import Processes
from llmkit.models import packing
from llmkit.models.kernels import dropout
from llmkit.training.forecast import compiling
from llmkit.training.loss_module import LossModule
from llmkit.training.tasks.task import Examples, Rows, on_device

CPU_TOKENS = 2048
"""On a CPU larger micro-batches exceed its cache and are up to 10% slower."""

FLEX = "flex_attention"


def fit(
    objective: LossModule,
    examples: Examples,
    share: int,
    requested: int | None,
    processes: Processes,
) -> tuple[int, float]:
    """The micro-batch size that fits, and the seconds of its forward and backward pass.

    Memory is tested with the longest examples, time is measured with those of median length.
    `share` is this process's part of the global batch; if the user gives a size, only that,
    `requested`, is tried. Raises ResourceError if it, or even one sequence, does not fit.
    """
    size = requested or even_share(share, _most(examples, processes))
    longest = np.resize(examples.longest_first(), size)
    usual = np.resize(np.roll(examples.longest_first(), -(len(examples) // 2)), size)
    while True:
        try:
            _run(objective, examples, longest[:size], processes)
            start = time.perf_counter()
            _run(objective, examples, usual[:size], processes)
            seconds = time.perf_counter() - start
            break
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if requested or size == 1:
                raise too_large(size) from error
        finally:
            objective.zero_grad()
        size = math.ceil(size / 2)
        if processes.device.type == "cuda":
            torch.cuda.empty_cache()
    return int(processes.smallest(size)), processes.largest([seconds])[0]


def usual_micro_batch(tokens: int) -> int:
    """The number of examples of this many tokens in a micro-batch on a CPU."""
    return max(1, CPU_TOKENS // tokens)


def even_share(share: int, most: int) -> int:
    """The micro-batch size, at most `most`, that divides a share into the fewest equal parts."""
    return math.ceil(share / math.ceil(share / most))


def quickest_attention(
    objective: LossModule, examples: Examples, size: int, processes: Processes
) -> tuple[str, float]:
    """Set the fastest attention for packed documents; returns its name and its seconds per
    micro-batch. The default stays if nothing else is tried.

    The default attention uses a block x block mask and also computes what the mask hides. Flex
    attention (Dong et al. 2024, arXiv 2412.05496) skips it; on a GPU it is chosen if it is faster
    and isolates documents.
    """
    model: Any = objective.model
    usual = str(model.config._attn_implementation)
    rows = np.resize(examples.longest_first(), size)
    packed = "position_ids" in examples.batch(rows)
    if processes.device.type == "cpu" or not (packed and model._supports_flex_attn):
        return usual, math.inf
    seconds = {}
    for name in (usual, FLEX):
        model.set_attn_implementation(name)
        own = math.inf
        try:
            if name == usual or packing.isolates(model):
                own = _fastest(objective, examples, rows, processes)
        except Exception:  # its compiler raises errors of any type
            pass
        seconds[name] = processes.largest([own])[0]
    best = min(seconds, key=lambda name: seconds[name])
    model.set_attn_implementation(best)
    return best, seconds[best]


@torch.no_grad()
def measuring(
    objective: LossModule, validation: Examples | None, size: int, processes: Processes
) -> float:
    """Estimated seconds of a validation, from one of its micro-batches; 0 without validation."""
    if not validation:
        return 0.0
    rows = np.resize(validation.longest_first(), min(size, len(validation)))
    batch = on_device(validation.batch(rows), processes.device)
    objective.model.eval()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        objective(batch)
        wait_for(processes.device)
        times.append(time.perf_counter() - start)
    objective.model.train()
    return min(times) * math.ceil(len(validation) / len(rows) / processes.count)


def compiled(
    objective: LossModule, examples: Examples, size: int, eager: float, processes: Processes
) -> tuple[float, str]:
    """Seconds of a compiled micro-batch, and a short reason; infinite if the compiler fails. The
    objective stays unchanged; what this cost and gave, beside `eager` seconds, is recorded."""
    rows = np.resize(examples.longest_first(), size)
    kind = compiling.kind_of_run(objective.model, row_length(examples, rows[0]), size, processes)
    start = time.perf_counter()
    objective.compile_layers()
    try:
        _run(objective, examples, rows, processes)
        whole = time.perf_counter() - start
        seconds = _fastest(objective, examples, rows, processes)
    except Exception as error:  # the compiler raises errors of any type
        return math.inf, f"the compiler fails: {str(error).splitlines()[0][:120]}"
    finally:
        objective.zero_grad()
        objective.compile_nothing()
    seconds, whole = processes.largest([seconds, whole])
    if processes.is_main:
        taken = compiling.Compilation(max(0.0, whole - seconds), seconds / eager)
        compiling.record_compilation(kind, taken)
    return seconds, (
        f"measured: {1e3 * seconds:.0f} ms per micro-batch, {1e3 * eager:.0f} without, after "
        f"{whole:.0f} s of compiling"
    )


def lengths_differ(examples: Examples) -> bool:
    """Whether batches are padded to different lengths."""
    order = examples.longest_first()
    return row_length(examples, order[0]) != row_length(examples, order[-1])


def _fastest(objective: LossModule, examples: Examples, rows: Rows, processes: Processes) -> float:
    """Seconds of the fastest of three micro-batches; gradients are discarded."""
    times = []
    try:
        _run(objective, examples, rows, processes)
        for _ in range(3):
            start = time.perf_counter()
            _run(objective, examples, rows, processes)
            times.append(time.perf_counter() - start)
    finally:
        objective.zero_grad()
    return min(times)


def _run(objective: LossModule, examples: Examples, rows: Rows, processes: Processes) -> None:
    batch = on_device(examples.batch(rows), processes.device)
    masks = dropout.of_examples(0, np.arange(len(rows)), processes.device)
    with masks, objective.compiled(), processes.in_training():
        objective(batch)["objective"].sum().backward()
    wait_for(processes.device)


def _most(examples: Examples, processes: Processes) -> int:
    if processes.device.type != "cpu":
        return len(examples) + 1_000_000
    middle = examples.longest_first()[len(examples) // 2]
    return usual_micro_batch(row_length(examples, middle))


def row_length(examples: Examples, row: int) -> int:
    """Number of tokens of an example, padding included."""
    return int(examples.batch([row])["input_ids"].shape[-1])


_RATE_SECONDS, _RATE_WIDTH, _RATE_TOKENS = 0.3, {"cpu": 512, "cuda": 4096}, 16_384
"""Time of measuring a layer, and the maximum of its width and of its tokens: more are as fast."""


@cache
def layer_rate(
    head: int, heads: int, tokens: int, rows: int, device: torch.device, precision: str
) -> float:
    """Operations per second of forward and backward passes of a transformer layer with random
    weights: what training reaches, rather than a product of matrices alone.

    The layer has `heads` of width `head`, or fewer where it would be very wide; its input has
    `rows` of this many `tokens`.
    """
    width = head * min(heads, max(1, _RATE_WIDTH.get(device.type, head) // head))
    rows = min(rows, max(1, _RATE_TOKENS // tokens))
    layer = nn.TransformerEncoderLayer(
        width, width // head, 4 * width, dropout=0.0, batch_first=True, norm_first=True
    ).to(device)
    given = torch.zeros(rows, tokens, width, device=device, requires_grad=True)
    times: list[float] = []
    while len(times) < 3 or sum(times) < _RATE_SECONDS:
        start = time.perf_counter()
        with in_training(precision, device):
            layer(given).sum().backward()
        wait_for(device)
        times.append(time.perf_counter() - start)
    return rows * tokens * (72 * width**2 + 12 * tokens * width) / min(times)


Shape = tuple[int, ...]


@torch.no_grad()
def operations(objective: LossModule, examples: Examples, device: torch.device) -> float:
    """Operations of training per prediction, counted as in "PaLM" (Chowdhery et al. 2022, appendix
    B): three times the forward pass, with all attention scores and without recomputation.
    """
    rows = [int(examples.longest_first()[0])]
    batch = on_device(examples.batch(rows), device)
    # torch's own table lacks attention on a CPU.
    own = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        objective(batch)
    return float(3 * counter.get_total_flops() / max(1, examples.count(rows)))


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Scores and their sums over values; shapes are [batch, heads, tokens, width]."""
    batch, heads, n, width = query
    return 2 * batch * heads * n * key[2] * (width + value[3])
