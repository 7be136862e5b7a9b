"""Weights in huge pages, for generating on a CPU.

Each step of a single text reads all weights once, and with pages of 4 KiB the processor spends half
of that time finding them: one core reads 16 GB/s, and 31 GB/s from pages of 2 MiB. Values stay the
same. To delete it: remove the call in `inference/generate.py`.
"""

from __future__ import annotations

import contextlib
import mmap
from itertools import chain

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

HUGE_PAGE = 1 << 21
_ALIGNED = 64
"""Bytes: a vector of the processor."""


def in_huge_pages(model: PreTrainedModel) -> PreTrainedModel:
    """Moves the weights of a model on a CPU, in place, where the system has huge pages and memory
    for them."""
    weights = [each for each in chain(model.parameters(), model.buffers()) if _can_move(each)]
    size = sum(map(_room, weights))
    if size < HUGE_PAGE or size > psutil.virtual_memory().available:
        return model
    with contextlib.suppress(AttributeError, OSError):  # other systems, or a kernel without them
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        free = torch.frombuffer(memory, dtype=torch.uint8)
        for weight in weights:
            rows = weight.data if weight.is_contiguous() else weight.data.T
            moved = free[: rows.nbytes].view(rows.dtype).view(rows.shape).copy_(rows)
            weight.data, free = moved if weight.is_contiguous() else moved.T, free[_room(weight) :]
    return model


def _can_move(weight: Tensor) -> bool:
    is_plain = type(weight.data) is Tensor and weight.device.type == "cpu"
    return is_plain and weight.numel() > 0 and (weight.is_contiguous() or _is_transposed(weight))


def _is_transposed(weight: Tensor) -> bool:
    return weight.dim() == 2 and weight.T.is_contiguous()


def _room(weight: Tensor) -> int:
    return -(-weight.nbytes // _ALIGNED) * _ALIGNED
