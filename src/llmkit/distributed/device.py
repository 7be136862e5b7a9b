"""What a device computes in and how fast, and what becomes of the memory that is freed.

Arithmetic is bf16 where the hardware has it, else fp32, and TF32 for training on a GPU; weights and
the optimizer's state are always fp32.

glibc gives large blocks back to the system at once, so that every step asks for the same pages
again: a fifth to a third of the time of a step on two cores. `keep_freed_memory` prevents it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator

import torch

RATE_SECONDS = 0.06

# Numbers of malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3

_LARGE = 1 << 30
"""Bytes from which a block does go back to the system: it is no tensor of a step."""

_NEVER = -1


def resolve_precision(wish: str, device: torch.device) -> str:
    """`fp32` or `bf16`: the wish, or for `auto` what is fast on the device."""
    if wish != "auto":
        return wish
    return "bf16" if has_bf16(device) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bf16. Others imitate it: a CPU with AVX2 alone is a
    hundred times slower so."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextlib.contextmanager
def in_training(precision: str, device: torch.device) -> Iterator[None]:
    """Forward and backward passes within are computed as training does: in bf16 where it is asked
    for, and what stays fp32 is multiplied on CUDA in TF32 (fp32's range, ten bits of fraction,
    sums in fp32), several times as fast. What is measured is computed outside, in true fp32.

    NVIDIA_TF32_OVERRIDE=0, NVIDIA's own switch, has training in true fp32 too.
    """
    tf32 = _tf32() if device.type == "cuda" else contextlib.nullcontext()
    with tf32, torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    products = torch.backends.cuda.matmul  # torch refuses to mix this switch with its newer one
    before = products.allow_tf32
    products.allow_tf32 = True
    try:
        yield
    finally:
        products.allow_tf32 = before


def matrix_rate(device: torch.device, precision: str) -> float:
    """Operations per second of a large matrix product on this device, the best in RATE_SECONDS: the
    choice of a model depends on it, and other programs take a core for some hundredths."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side = 1024 if device.type == "cpu" else 8192
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    times: list[float] = []
    while len(times) < 3 or sum(times) < RATE_SECONDS:
        wait_for(device)
        start = time.perf_counter()
        a @ b
        wait_for(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def wait_for(device: torch.device) -> None:
    """Returns when the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def keep_freed_memory() -> None:
    """Keeps freed memory, in large pages where the system gives them; no other result changes.

    Large pages need a torch that has not allocated anything yet. Without glibc nothing happens.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, _NEVER)
