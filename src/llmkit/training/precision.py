"""What a run computes in: bf16 where the hardware has it, else fp32, and TF32 for training on a
GPU. Weights and the optimizer's state are fp32 always."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def settled(wish: str, device: torch.device) -> str:
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
