"""Which precision texts are written in, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmkit.config.schema import Config
from llmkit.errors import ConfigError
from llmkit.inference import generate

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def chosen(device: torch.device, **settings: Any) -> str:
    return generate.resolved(config(**settings), device).generation.precision


def config(**settings: Any) -> Config:
    return Config.model_validate({"generation": settings})


def test_auto_is_fp32_on_a_cpu_and_bf16_on_an_accelerator() -> None:
    assert chosen(CPU) == "fp32"
    assert chosen(CUDA) == "bf16"
    assert chosen(CUDA, precision="fp32") == "fp32"
    assert chosen(CPU, precision="bf16") == "bf16"


def test_int8_weights_are_computed_in_bf16_and_on_a_cpu_alone() -> None:
    assert chosen(CPU, weights="int8") == "bf16"
    with pytest.raises(ConfigError):
        chosen(CUDA, weights="int8")


@pytest.mark.parametrize(
    ("device", "settings", "n_texts", "is_warned"),
    [
        (CPU, {}, 32, False), (CUDA, {}, 32, True), (CUDA, {}, 1, False),
        (CUDA, {"precision": "fp32"}, 32, False), (CPU, {"precision": "bf16"}, 32, True),
        (CPU, {"weights": "int8"}, 2, True),
    ],
)  # fmt: skip
def test_it_is_said_where_a_text_may_depend_on_its_batch(
    device: torch.device, settings: dict[str, str], n_texts: int, is_warned: bool
) -> None:
    resolved = generate.resolved(config(**settings), device)
    warning = generate.warning_of_precision(resolved.generation, n_texts)
    assert (warning is not None) == is_warned
    if warning is not None:
        assert "bf16" in warning
        assert "generation.precision=fp32" in warning
