"""Each text gets the positions that plain transformers gives it alone, whatever its company."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmkit.data.examples.packs import Responses, alone, packed
from llmkit.models import build, logits, packing, rope
from llmkit.models.logits import ChosenLogits
from llmkit.training.tasks.responses.completion import CompletionLoss

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
BORDER = 16
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": BORDER,
    "short_factor": [1.0] * 8, "long_factor": [2.0 + i for i in range(8)],
}  # fmt: skip
KINDS = {
    "phi3": {"original_max_position_embeddings": BORDER, "rope_parameters": LONGROPE},
    "llama": {
        "max_position_embeddings": BORDER,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0},
    },
}
LENGTHS = [5, 40, 16, 17, 23, 60]


def model_of(kind: str) -> PreTrainedModel:
    length = KINDS[kind].get("max_position_embeddings", 64)
    config = build.model_config(kind, {**SHAPE, **KINDS[kind]}, 61, length, SPECIAL)
    model = build.causal_model(config, 0)
    with torch.no_grad():  # fresh weights hardly attend to anything
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.mul_(8)
    return model.eval()


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """A model of plain transformers with the same weights, which has read no text yet."""
    made = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=torch.float32)
    made.load_state_dict(model.state_dict())
    return made.eval()


def texts() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(1, 61, (n,), generator=draw) for n in LENGTHS]


def by_itself(model: PreTrainedModel, text: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return plain(model)(input_ids=text[None], use_cache=False).logits[0]


@pytest.mark.parametrize("kind", KINDS)
def test_company_matters_to_plain_transformers(kind) -> None:
    """Or the tests below would show nothing."""
    model, rows = model_of(kind), torch.nn.utils.rnn.pad_sequence(texts(), batch_first=True)
    together = plain(model)(input_ids=rows, use_cache=False).logits[0, :5]
    assert (together - by_itself(model, texts()[0])).abs().max() > 1e-2


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_padded_rows_with_a_mask_are_as_if_alone(kind, side) -> None:
    model, some = model_of(kind), texts()
    rows = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_side=side)
    ones = [torch.ones_like(text) for text in some]
    mask = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side)
    with torch.no_grad():
        logits = model(input_ids=rows, attention_mask=mask, use_cache=False).logits
    for text, own, inside in zip(some, logits, mask.bool(), strict=True):
        torch.testing.assert_close(own[inside], by_itself(model, text), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluated_rows_are_as_if_alone(kind) -> None:
    model, some = model_of(kind), texts()
    rows = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
    real = torch.arange(rows.shape[1]) < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        found = torch.cat([*ChosenLogits(model).chunks({"input_ids": rows, "real": real}, real)])
    expected = torch.cat([by_itself(model, text) for text in some])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("arrange", [alone, lambda rows, pad: packed(rows, 64, pad)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_trained_rows_is_that_of_each_alone(kind, arrange) -> None:
    model, some = model_of(kind), texts()
    starts = np.cumsum([0, *LENGTHS])
    ids = torch.cat(some).numpy()
    scored = np.ones(len(ids), dtype=np.bool_)
    scored[starts[:-1]] = False
    responses = Responses(ids, scored, starts, np.array(LENGTHS), (), 0, max(LENGTHS))
    rows = arrange(responses, 0)
    loss = CompletionLoss(logits.has_linear_head(model)).sums(model, rows.batch(range(len(rows))))[
        "loss"
    ]
    expected = sum(
        torch.nn.functional.cross_entropy(by_itself(model, t)[:-1], t[1:], reduction="sum")
        for t in some
    )
    assert loss.item() == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_are_kept_apart(kind) -> None:
    assert packing.isolates(model_of(kind))


def test_models_with_fixed_frequencies_are_left_as_they_are() -> None:
    config = build.model_config("llama", SHAPE, 61, 64, SPECIAL)
    model = build.causal_model(config, 0)
    assert "forward" not in vars(model.model.rotary_emb)
    assert not model.base_model._forward_pre_hooks
    assert rope.longrope_limit(model) is None
