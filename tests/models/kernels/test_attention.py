"""Packed documents do not see each other, whichever attention a run takes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from llmkit.data.examples.blocks import Blocks
from llmkit.distributed.processes import join_processes
from llmkit.models import build, packing
from llmkit.models.kernels import attention
from llmkit.training import probe
from llmkit.training.loss_module import LossModule
from llmkit.training.tasks.causal import CausalLoss
from llmkit.training.tasks.task import on_device
from tests.jobs import token_file
from tests.training.conftest import tiny_model

STILL = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


def packed(block_size: int) -> Blocks:
    """Blocks of short documents."""
    chance = np.random.default_rng(0)
    lengths = chance.integers(5, 60, 200)
    return Blocks(
        token_file([chance.integers(1, 60, n).tolist() for n in lengths], 0, 0), block_size
    )


def trained(model: PreTrainedModel, name: str, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and gradients of a compiled model."""
    model.set_attn_implementation(name)
    torch.compiler.reset()
    model.zero_grad()
    compiled = torch.compile(lambda **given: model(**given).logits, dynamic=False)
    logits = compiled(**inputs)
    # A weight for each logit: a plain sum would hide what is put in the wrong place.
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits * weights).sum().backward()
    return logits.detach(), torch.cat([w.grad.flatten() for w in model.parameters()])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("architecture", "length", "is_packed", "settings"),
    [
        ("llama", 200, True, {"num_key_value_heads": 1, "head_dim": 16}),
        ("qwen3", 600, False, {}),
        ("qwen3", 600, True, {}),
        ("mistral", 40, True, {"sliding_window": 8}),
        ("gpt2", 40, False, STILL),
    ],
)
def test_compiled_attention_on_a_cpu_gives_the_logits_and_gradients_of_torchs(
    architecture: str, length: int, is_packed: bool, settings: dict[str, Any]
) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **settings}
    config = build.model_config(architecture, shape, 61, length, {"pad_token_id": 0})
    model = build.causal_model(config, seed=0)
    ids = torch.arange(2 * length).view(2, length) * 7 % 61
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if is_packed:
        inputs["position_ids"] = (torch.arange(length) % 13).expand(2, -1)
    logits, gradients = trained(model, attention.BLOCKWISE, inputs)
    expected, theirs = trained(model, attention.USUAL, inputs)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_what_sees_both_sides_does_so_compiled() -> None:
    config = BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForMaskedLM(config)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, 25:] = 0
    inputs = {"input_ids": torch.arange(80).view(2, 40) % 61, "attention_mask": mask}
    logits, gradients = trained(model, attention.BLOCKWISE, inputs)
    expected, theirs = trained(model, attention.USUAL, inputs)
    torch.testing.assert_close(logits[mask > 0], expected[mask > 0], rtol=1e-5, atol=1e-5)
    assert torch.isfinite(gradients).all()
    assert torch.isfinite(theirs).all()


def test_what_is_not_compiled_is_computed_as_by_plain_transformers() -> None:
    model, ids = tiny_model("qwen3").train(), torch.arange(24).view(2, 12)
    expected = model(ids).logits
    attention.use_blockwise(model, torch.device("cpu"))
    assert model.config._attn_implementation == attention.BLOCKWISE
    assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("n_key_heads", [4, 2])
@pytest.mark.parametrize("masked", ["causal", "both sides", "documents"])
def test_attention_that_is_not_compiled_is_as_exact_in_bf16_as_torchs(
    masked: str, n_key_heads: int
) -> None:
    generator, n = torch.Generator().manual_seed(0), 24
    inputs = [
        torch.randn(2, heads, n, 8, generator=generator).bfloat16().requires_grad_()
        for heads in (4, n_key_heads, n_key_heads)
    ]
    document = torch.tensor([[0] * 9 + [1] * 15, [0] * 20 + [1] * 4])
    mask = (document[:, None, :, None] == document[:, None, None, :]).tril()
    given = {"attention_mask": mask if masked == "documents" else None}
    settings = {**given, "is_causal": masked == "causal"}

    def results(name: str, dtype: torch.dtype) -> list[Tensor]:
        module, own = torch.nn.Module(), [each.detach().to(dtype) for each in inputs]
        module.num_key_value_groups, module.is_causal = 4 // n_key_heads, masked == "causal"
        for each in own:
            each.requires_grad_()
        kernel = attention.forward if name == "own" else attention.sdpa_attention_forward
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out, _ = kernel(module, *own, **settings)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype))
        return [out.detach(), *(each.grad for each in own if each.grad is not None)]

    own, torchs = results("own", torch.bfloat16), results("torch", torch.bfloat16)
    for one, other, exact in zip(own, torchs, results("torch", torch.float64), strict=True):
        assert not torch.equal(one, other)  # it is another computation
        assert torch.linalg.vector_norm(one - exact) < 0.01 * torch.linalg.vector_norm(exact)


def test_a_cpu_keeps_the_attention_that_it_has(tmp_path: Path) -> None:
    processes, model = join_processes("fp32"), tiny_model("qwen3")
    objective = LossModule(CausalLoss(1, linear_head=True), model)
    name, _ = probe.quickest_attention(objective, packed(64), 4, processes)
    assert name == model.config._attn_implementation == "sdpa"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral"])
def test_flex_attention_keeps_documents_apart(architecture: str) -> None:
    model = tiny_model(architecture).to("cuda")  # on a CPU it has no backward pass
    model.set_attn_implementation(probe.FLEX)
    assert packing.isolates(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_attention_of_a_gpu_gives_the_loss_and_the_gradients_of_the_usual_one(
    precision: str, tmp_path: Path
) -> None:
    processes = join_processes(precision)
    model = tiny_model("qwen3", hidden_size=128).to(processes.device)
    objective, examples = LossModule(CausalLoss(1, linear_head=True), model), packed(512)
    found = []
    for name in ("sdpa", probe.quickest_attention(objective, examples, 8, processes)[0]):
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
