"""What a device computes in, and what becomes of the memory that a step frees."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from llmkit.distributed import device
from llmkit.training.muon import orthogonal

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def products() -> Iterator[Any]:
    yield torch.backends.cuda.matmul
    torch.backends.cuda.matmul.allow_tf32 = False


def test_training_on_a_gpu_multiplies_in_tf32_and_nothing_else_does(products) -> None:
    with device.in_training("fp32", CUDA):
        assert products.allow_tf32
    assert not products.allow_tf32
    with pytest.raises(RuntimeError), device.in_training("fp32", CUDA):
        raise RuntimeError
    assert not products.allow_tf32


def test_a_program_that_has_tf32_on_keeps_it(products) -> None:
    products.allow_tf32 = True
    with device.in_training("fp32", CUDA):
        pass
    assert products.allow_tf32


def test_training_on_a_cpu_leaves_the_switch_of_gpus_alone(products) -> None:
    with device.in_training("bf16", CPU):
        assert not products.allow_tf32
        assert torch.is_autocast_enabled("cpu")


def test_auto_is_bf16_where_the_hardware_has_it_and_a_wish_is_obeyed() -> None:
    assert device.resolve_precision("auto", CPU) == ("bf16" if device.has_bf16(CPU) else "fp32")
    assert [device.resolve_precision(wish, CPU) for wish in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.parametrize(
    ("instructions", "dtype"), [(True, torch.bfloat16), (False, torch.float32)]
)
def test_muon_leaves_bf16_out_where_it_is_imitated(monkeypatch, instructions, dtype) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: instructions)
    matrices = torch.randn(2, 20, 50, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrices)
    assert found.dtype == dtype
    exact = torch.linalg.svd(matrices, full_matrices=False)
    alike = (found.float() * (exact.U @ exact.Vh)).sum((1, 2)) / 20
    assert alike.min() > 0.8


STEPS = """
import ctypes, resource, torch
from llmkit.distributed import device
ctypes.CDLL(None).prctl({no_large_pages}, 1, 0, 0, 0)
{first}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    return sum(len(torch.ones(10 << 20)) for _ in range(4))  # 40 MB each: glibc keeps up to 32
for _ in range(5):
    step()
counts = []
for _ in range(10):
    before = faults()
    step()
    counts.append(faults() - before)
print(*counts)
"""


NO_LARGE_PAGES = 41
"""PR_SET_THP_DISABLE of linux/prctl.h: else a fault counts for one page or for 512."""


def faults(first: str) -> list[int]:
    """Pages that the system hands out anew in each of ten steps, after five in which the heap
    grows: something small may stand in the way of its first blocks."""
    code = STEPS.format(first=first, no_large_pages=NO_LARGE_PAGES)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(count) for count in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_let_go_of_is_not_asked_for_again() -> None:
    without, kept = faults(""), faults("device.keep_freed_memory()")
    assert sorted(kept)[-2] < 10
    assert sum(kept) < 5_000 < 10_000 < sum(without)
