"""Batches of source and target texts: what the decoder reads, what is predicted, and padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
)
from transformers.models.m2m_100.modeling_m2m_100 import shift_tokens_right

from llmkit.data.examples.encoded import Encoded
from llmkit.data.examples.paired import PairedExamples, shift_of
from tests import pairs

SOURCES, TARGETS = [[5, 6, 2], [7, 2], [8, 9, 5, 2]], [[6, 2], [5, 7, 8, 2], [9, 2]]


def examples(model: PreTrainedModel) -> PairedExamples:
    sides = (Encoded.of_ids(rows, pad_id=1) for rows in (SOURCES, TARGETS))
    return PairedExamples(*sides, shift_of(model))


def small(kind: type, model: Callable[..., Any], **settings: Any) -> PreTrainedModel:
    shape = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    made: PreTrainedModel = model(kind(vocab_size=12, d_model=8, **shape, **heads, **settings))
    return made.eval()


MODELS = {
    "t5": lambda: pairs.t5(pairs.t5_tokenizer()).eval(),
    "bart": lambda: pairs.bart(pairs.bart_tokenizer()).eval(),
    "mbart": lambda: small(MBartConfig, MBartForConditionalGeneration),
    "m2m": lambda: small(M2M100Config, M2M100ForConditionalGeneration, decoder_start_token_id=2),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_decoder_reads_what_transformers_gives_it_for_the_labels(kind: str) -> None:
    model = MODELS[kind]()
    batch = examples(model).batch([0, 1, 2])
    targets, own = batch.pop("targets"), model.config
    for row, wanted in enumerate(TARGETS):
        assert targets[row].tolist() == wanted + [-100] * (4 - len(wanted))
    if kind == "m2m":
        given = targets.masked_fill(targets == -100, own.pad_token_id)
        theirs = shift_tokens_right(given, own.pad_token_id, own.decoder_start_token_id)
    else:
        theirs = model.prepare_decoder_input_ids_from_labels(labels=targets)
    assert torch.equal(batch["decoder_input_ids"], theirs)
    with torch.no_grad():
        loss = model(**batch, labels=targets).loss
        names = ("input_ids", "attention_mask")
        plain = model(**{name: batch[name] for name in names}, labels=targets)
    assert float(loss) == pytest.approx(float(plain.loss), rel=1e-6)


def test_predictions_are_counted_and_padding_has_none() -> None:
    some = examples(MODELS["bart"]())
    assert some.count([0, 1, 2]) == some.n_predictions == 8
    assert some.count([2, -1]) == 2
    batch = some.batch([1, -1])
    assert (batch["targets"][1] == -100).all()
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert (batch["targets"] != -100).sum() == some.count([1, -1])


def test_an_empty_row_of_mbart_has_no_predictions_either() -> None:
    batch = examples(MODELS["mbart"]()).batch([-1, -1])
    assert (batch["targets"] == -100).all()


def test_long_sources_come_first_and_neighbours_are_alike() -> None:
    some = examples(MODELS["bart"]())
    assert some.longest_first().tolist() == [2, 0, 1]
    assert some.lengths.tolist() == [5, 6, 6]


def test_other_texts_have_another_fingerprint() -> None:
    model = MODELS["bart"]()
    sides = Encoded.of_ids(SOURCES, 1), Encoded.of_ids(TARGETS, 1)
    one = PairedExamples(*sides, shift_of(model)).fingerprint
    assert one == examples(model).fingerprint
    moved = Encoded.of_ids([[6, 2, 5], [7, 8, 2], [9, 2]], 1)
    assert np.array_equal(np.sort(moved.ids), np.sort(sides[1].ids))
    assert PairedExamples(sides[0], moved, shift_of(model)).fingerprint != one
