"""Texts whose positions depend on their length are written as plain transformers writes each."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

BORDER = 16
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": BORDER,
    "short_factor": [1.0] * 8, "long_factor": [2.0 + i for i in range(8)],
}  # fmt: skip


@pytest.mark.parametrize("size", [1, 16])
def test_each_text_crosses_the_border_as_plain_transformers_has_it(tiny, ask, size) -> None:
    model = tiny("phi3", original_max_position_embeddings=BORDER, rope_parameters=LONGROPE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.mul_(8)
    samples = ask(model, micro_batch_size=size, max_new_tokens=30, do_sample=False)
    longest = [len(sample.prompt.ids) + len(sample.tokens) for sample in samples]
    assert min(longest) > BORDER
    for sample in samples:
        plain = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        ids = torch.tensor([list(sample.prompt.ids)])
        written = plain.eval().generate(ids, max_new_tokens=30, do_sample=False, pad_token_id=0)
        assert list(sample.tokens) == written[0, ids.shape[1] :].tolist()
