"""Beam search is that of transformers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from llmkit.inference.generated import Sample


def test_beams_are_those_of_transformers_with_their_log_probabilities(
    llama: PreTrainedModel, ask: Callable[..., list[Sample]]
) -> None:
    settings = {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 8}
    samples = ask(llama, ["Once", "The cat"], **settings)
    assert [sample.index for sample in samples] == [0, 1, 0, 1]
    for sample in samples:
        ids = torch.tensor([sample.prompt.ids])
        rows = llama.generate(ids, do_sample=False, pad_token_id=0, **settings)
        found = rows[sample.index, ids.shape[1] :].tolist()
        end = found.index(0) + 1 if 0 in found else len(found)
        assert list(sample.tokens) == found[:end]
        with torch.no_grad():
            row = torch.tensor([[*sample.prompt.ids, *sample.tokens]])
            logits = llama(row).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        own = logits.gather(1, torch.tensor(sample.tokens)[:, None]).sum()
        assert sample.logprob == pytest.approx(float(own), abs=1e-3)
