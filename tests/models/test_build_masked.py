"""Masked models of many architectures: documents kept apart, heads taken off."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from llmkit.errors import ConfigError
from llmkit.models import build, packing
from llmkit.models.logits import split_head

APART = ["modernbert", "bert", "roberta", "distilbert", "electra", "transformer", "albert",
         "xlm-roberta", "eurobert", "megatron-bert"]  # fmt: skip
SPECIAL = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
LENGTH = 160


def small(architecture: str, **settings: object) -> PreTrainedModel:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **settings}
    if architecture == "modernbert":
        shape |= {"num_hidden_layers": 4, "local_attention": 16}
    config = build.model_config(architecture, shape, 70, LENGTH, SPECIAL, build.MASKED_MODEL)
    model = build.new_model(config, 1, build.MASKED_MODEL)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.1)  # so that whatever one token sees of another shows
    return model.eval()


@pytest.mark.parametrize("architecture", APART)
@torch.no_grad()
def test_packed_documents_are_as_if_alone(architecture: str) -> None:
    model = small(architecture)
    masks = packing.document_masks(model)
    ids = torch.randint(3, 70, (2, LENGTH))
    lengths = [60, 1, 70, 29]  # the last is padding
    documents = torch.repeat_interleave(torch.tensor([1, 2, 3, 0]), torch.tensor(lengths))
    packed = model(input_ids=ids, **masks.inputs(documents.expand(2, -1))).logits
    for own, alone in zip(packed.split(lengths, 1)[:3], ids.split(lengths, 1), strict=False):
        torch.testing.assert_close(own, model(input_ids=alone).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["deberta-v2", "convbert"])
def test_an_architecture_that_cannot_is_refused(architecture: str) -> None:
    with pytest.raises(ConfigError, match="cannot isolate packed documents") as caught:
        packing.document_masks(small(architecture))
    assert "data.isolate_documents=false" in str(caught.value.next)


@pytest.mark.parametrize("architecture", [*APART, "deberta-v2"])
def test_the_head_alone_gives_the_logits_and_the_gradients(architecture: str) -> None:
    model = small(architecture)
    head = split_head(model)
    assert head is not None
    ids = torch.randint(3, 70, (2, 9))
    places = torch.tensor([[1, 4], [8, 0]])
    gradients = []
    for apart in (True, False):
        if apart:
            hidden = model.base_model(input_ids=ids)[0]
            logits = head(hidden.take_along_dim(places[..., None], 1))
        else:
            logits = model(input_ids=ids).logits.take_along_dim(places[..., None], 1)
        model.zero_grad()
        logits.square().sum().backward()
        gradients.append(
            [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
        )
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
