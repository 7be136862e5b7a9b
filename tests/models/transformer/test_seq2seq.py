"""The encoder-decoder Transformer: the same as torch's layers, causal, cached, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM

from llmkit.models import build
from llmkit.models.transformer import TransformerForSeq2SeqLM
from llmkit.models.transformer.config import TransformerConfig
from llmkit.models.transformer.seq2seq import DecoderLayer

SOURCE = torch.tensor([[5, 6, 7, 8, 2], [9, 4, 2, 1, 1]])
MASK = (SOURCE != 1).long()
TARGET = torch.tensor([[3, 11, 12, 13], [3, 14, 15, 16]])


def config(**settings: Any) -> TransformerConfig:
    return TransformerConfig(**{
        "vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "pad_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 3, **settings,
    })  # fmt: skip


def model(**settings: Any) -> TransformerForSeq2SeqLM:
    torch.manual_seed(0)
    made = TransformerForSeq2SeqLM(config(**settings)).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return made


@torch.no_grad()
def far(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def logits(made: Any, source: Tensor = SOURCE, mask: Tensor = MASK) -> Tensor:
    with torch.no_grad():
        found: Tensor = made(source, mask, TARGET[: len(source)]).logits
    return found


@pytest.mark.parametrize("position", ["before", "after"])
def test_a_decoder_layer_is_that_of_torch_with_its_weights(position: str) -> None:
    torch.manual_seed(0)
    theirs = nn.TransformerDecoderLayer(
        32, 4, 80, 0.0, "relu", norm_first=position == "before", batch_first=True
    ).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight += 0.1 * torch.randn_like(weight)
    ours = DecoderLayer(
        config(
            num_key_value_heads=4, intermediate_size=80, position_embedding="sinusoidal",
            bias=True, norm_type="layer_norm", norm_position=position, hidden_act="relu",
            gated_feed_forward=False,
        ), 0,
    ).eval()  # fmt: skip
    given, weights = theirs.state_dict(), {}
    pairs = {"feed_forward.inner": "linear1", "feed_forward.output": "linear2",
             "attention_norm": "norm1", "cross_attention_norm": "norm2",
             "feed_forward_norm": "norm3", "attention.output": "self_attn.out_proj",
             "cross_attention.output": "multihead_attn.out_proj"}  # fmt: skip
    for kind in ("weight", "bias"):
        for mine, other in (("attention", "self_attn"), ("cross_attention", "multihead_attn")):
            parts = given[f"{other}.in_proj_{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                weights[f"{mine}.{name}.{kind}"] = part
        weights |= {f"{a}.{kind}": given[f"{b}.{kind}"] for a, b in pairs.items()}
    ours.load_state_dict(weights)
    x, memory = torch.randn(2, 4, 32), torch.randn(2, 5, 32)
    wanted = theirs(
        x, memory, tgt_mask=nn.Transformer.generate_square_subsequent_mask(4),
        memory_key_padding_mask=MASK == 0, tgt_is_causal=True,
    )  # fmt: skip
    assert far(ours(x, memory, memory_mask=MASK.bool()[:, None, None]), wanted) < 1e-5


SHAPES = [
    {}, {"position_embedding": "learned", "norm_type": "layer_norm", "bias": True},
    {"position_embedding": "sinusoidal", "norm_position": "after", "tie_word_embeddings": False},
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_target_token_sees_all_of_the_source_and_no_later_target(shape: dict[str, Any]) -> None:
    made = model(**shape)
    before = logits(made)
    with torch.no_grad():
        later = TARGET.clone()
        later[:, 2:] = 17
        after = made(SOURCE, MASK, later).logits
        other = SOURCE.clone()
        other[0, 3] = 10
        moved = made(other, MASK, TARGET).logits
    assert far(before[:, :2], after[:, :2]) < 1e-6
    assert far(before[:, 2:], after[:, 2:]) > 1e-3
    assert (before[0] - moved[0]).abs().amax(1).min() > 1e-5
    assert far(before[1], moved[1]) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_changes_nothing(shape: dict[str, Any]) -> None:
    made = model(**shape)
    with torch.no_grad():
        alone = made(SOURCE[1:, :3], None, TARGET[1:]).logits
    assert far(alone, logits(made)[1:]) < 1e-5


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_the_same_with_and_without_a_cache_and_in_a_batch(beams: int) -> None:
    made = model()
    how = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False}
    cached = made.generate(SOURCE, attention_mask=MASK, **how)
    assert cached.shape[1] > 2
    assert torch.equal(cached, made.generate(SOURCE, attention_mask=MASK, use_cache=False, **how))
    for row, source in enumerate(SOURCE):
        alone = made.generate(source[None, : int(MASK[row].sum())], **how)[0]
        wanted = cached[row, : len(alone)]
        assert torch.equal(alone, wanted)
    if beams == 1:
        ids = TARGET[:, :1]
        for _ in range(3):
            with torch.no_grad():
                ids = torch.cat([ids, made(SOURCE, MASK, ids).logits[:, -1:].argmax(-1)], 1)
        same = (cached[:, :4] == ids) | (cached[:, :4] == 1)
        assert same.all()


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_is_loaded_by_the_auto_class(tied: bool, tmp_path: Path) -> None:
    made = model(tie_word_embeddings=tied)
    made.save_pretrained(tmp_path)
    back = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert type(back) is TransformerForSeq2SeqLM
    assert far(logits(back), logits(made)) == 0
    shared = back.lm_head.weight is back.encoder.embed_tokens.weight
    assert shared == tied


def test_the_loss_is_the_mean_over_the_targets_that_are_not_padding() -> None:
    made = model()
    labels = torch.tensor([[11, 12, 2], [14, 2, -100]])
    found = made(SOURCE, MASK, labels=labels)
    ids = torch.tensor([[3, 11, 12], [3, 14, 2]])
    assert torch.equal(made.prepare_decoder_input_ids_from_labels(labels), ids)
    with torch.no_grad():
        chances = made(SOURCE, MASK, ids).logits.log_softmax(-1)
    nll = [-chances[row, place, labels[row, place]] for row, place in
           ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))]  # fmt: skip
    assert found.loss.item() == pytest.approx(float(sum(nll)) / 5, rel=1e-5)


def test_it_is_built_by_its_name() -> None:
    special = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    how = ({"hidden_size": 32, "num_hidden_layers": 1}, 40, 16, special, build.SEQ2SEQ_MODEL)
    made = build.new_model(build.model_config("transformer", *how), 0, build.SEQ2SEQ_MODEL)
    assert isinstance(made, TransformerForSeq2SeqLM)
