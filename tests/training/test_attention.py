"""Packed documents do not see each other, whichever attention a run takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from llmkit.data.blocks import Blocks
from llmkit.models import packing
from llmkit.training import probe, runtime
from llmkit.training.tasks import CausalLanguageModeling, Objective, on_device
from tests.data.test_blocks import token_file
from tests.training.conftest import tiny_model


def packed(block_size: int) -> Blocks:
    """Blocks of short documents."""
    chance = np.random.default_rng(0)
    lengths = chance.integers(5, 60, 200)
    return Blocks(
        token_file([chance.integers(1, 60, n).tolist() for n in lengths], 0, 0), block_size
    )


def test_a_cpu_keeps_the_attention_that_it_has(tmp_path: Path) -> None:
    processes, model = runtime.start("fp32", (), tmp_path), tiny_model("qwen3")
    objective = Objective(CausalLanguageModeling(1, linear_head=True), model)
    name, _ = probe.attention(objective, packed(64), 4, processes)
    assert name == model.config._attn_implementation == "sdpa"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral"])
def test_flex_attention_keeps_documents_apart(architecture: str) -> None:
    model = tiny_model(architecture)
    model.set_attn_implementation(probe.FLEX)
    assert packing.isolates(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_attention_of_a_gpu_gives_the_loss_and_the_gradients_of_the_usual_one(
    precision: str, tmp_path: Path
) -> None:
    processes = runtime.start(precision, (), tmp_path)
    model = tiny_model("qwen3", hidden_size=128).to(processes.device)
    objective, examples = Objective(CausalLanguageModeling(1, linear_head=True), model), packed(512)
    found = []
    for name in ("sdpa", probe.attention(objective, examples, 8, processes)[0]):
        model.set_attn_implementation(name)
        with processes.autocast():
            sums = objective(on_device(examples.batch(range(8)), processes.device))
        sums["objective"].backward()
        gradients = torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])
        found.append((float(sums["loss"]), gradients.clone()))
        objective.zero_grad()
    (loss, gradient), (other, theirs) = found
    assert other == pytest.approx(loss, rel=1e-5 if precision == "fp32" else 1e-2)
    far = torch.linalg.vector_norm(theirs - gradient) / torch.linalg.vector_norm(gradient)
    assert far < (1e-3 if precision == "fp32" else 5e-2)
