"""What training computes in, and what is left exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from llmkit.training import precision
from llmkit.training.muon import orthogonal

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def products() -> Iterator[Any]:
    yield torch.backends.cuda.matmul
    torch.backends.cuda.matmul.allow_tf32 = False


def test_training_on_a_gpu_multiplies_in_tf32_and_nothing_else_does(products) -> None:
    with precision.in_training("fp32", CUDA):
        assert products.allow_tf32
    assert not products.allow_tf32
    with pytest.raises(RuntimeError), precision.in_training("fp32", CUDA):
        raise RuntimeError
    assert not products.allow_tf32


def test_a_program_that_has_tf32_on_keeps_it(products) -> None:
    products.allow_tf32 = True
    with precision.in_training("fp32", CUDA):
        pass
    assert products.allow_tf32


def test_training_on_a_cpu_leaves_the_switch_of_gpus_alone(products) -> None:
    with precision.in_training("bf16", CPU):
        assert not products.allow_tf32
        assert torch.is_autocast_enabled("cpu")


def test_auto_is_bf16_where_the_hardware_has_it_and_a_wish_is_obeyed() -> None:
    assert precision.settled("auto", CPU) == ("bf16" if precision.has_bf16(CPU) else "fp32")
    assert [precision.settled(wish, CPU) for wish in ("fp32", "bf16")] == ["fp32", "bf16"]


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
