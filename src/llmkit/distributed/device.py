"""The precision and speed of a device, and how freed memory is reused.

Arithmetic is bf16 where the hardware supports it, else fp32, and TF32 for training on a GPU;
weights and the optimizer's state are always fp32.

glibc returns large blocks to the system at once, so that every step requests the same pages again:
a fifth to a third of the time of a step on two cores. `keep_freed_memory` prevents this.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator

import torch

RATE_SECONDS = 0.06

# Constants of malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3

_LARGE = 1 << 30
"""Blocks of this many bytes or more are still returned to the system: no tensor of a step is as
large."""

_NEVER = -1


def resolve_precision(requested: str, device: torch.device) -> str:
    """`fp32` or `bf16`: as requested, or for `auto` the faster one on the device."""
    if requested != "auto":
        return requested
    return "bf16" if has_bf16(device) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bf16 natively. Other devices emulate it: a CPU with
    only AVX2 is then a hundred times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextlib.contextmanager
def in_training(precision: str, device: torch.device) -> Iterator[None]:
    """Runs forward and backward passes in the precision of training.

    That is bf16 if `precision` is bf16. On CUDA, matrices that stay fp32 are multiplied in TF32
    (fp32's range, ten bits of fraction, sums in fp32), several times as fast. Evaluation runs
    outside this context, in true fp32. NVIDIA_TF32_OVERRIDE=0, NVIDIA's own switch, disables TF32
    in training too.
    """
    tf32 = _tf32() if device.type == "cuda" else contextlib.nullcontext()
    with tf32, torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    products = torch.backends.cuda.matmul  # torch refuses to mix this setting with its newer API
    before = products.allow_tf32
    products.allow_tf32 = True
    try:
        yield
    finally:
        products.allow_tf32 = before


def matrix_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of a large matrix product on this device.

    It is the best rate within RATE_SECONDS: the choice of a model depends on it, and other programs
    may occupy a core for some hundredths of a second.
    """
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


def name_of(device: torch.device) -> str:
    """A description of a device: the name of a GPU, or the threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def wait_for(device: torch.device) -> None:
    """Waits until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def keep_freed_memory() -> None:
    """Keeps freed memory for reuse, in huge pages where the system offers them; no result changes.

    Huge pages take effect only before torch allocates anything. Without glibc this does nothing.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, _NEVER)
