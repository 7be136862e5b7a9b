"""Two models are compared on texts; a difference or a NaN is never overlooked."""

from __future__ import annotations

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmkit.export.comparing import compare_outputs, probe_ids
from llmkit.models import tokenizer as tokenizers


def test_equal_other_and_broken_models_are_distinguished() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, initializer_range=0.5,
        )
    ).eval()  # fmt: skip
    rows = probe_ids(tokenizers.train_bpe(["text"] * 2, 300), 40)
    assert len(rows) == 24
    assert max(row.shape[1] for row in rows) == 40
    figures = compare_outputs(model, model, rows)
    assert figures == {"texts": 24, "largest_difference": 0.0, "same_largest_output": 1.0}
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.1)
        wanted = model(input_ids=rows[3]).logits
    found = compare_outputs(model, other, [rows[3]])["largest_difference"]
    torch.testing.assert_close(found, float(0.1 * wanted.abs().max() / wanted.abs().max().clamp(1)))
    with torch.no_grad():
        other.lm_head.weight[7] = float("nan")
    assert compare_outputs(model, other, rows)["largest_difference"] == float("inf")
