"""The loss of BERT's two objectives beside that of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmkit.data.examples.blocks import Vocabulary
from llmkit.data.examples.sentence_pairs import SentenceMarks, SentencePairs
from llmkit.evaluation.next_sentence import NEXT_SENTENCE_MODEL
from llmkit.models import build
from llmkit.training import muon
from llmkit.training.tasks.next_sentence import NextSentenceLoss
from tests.jobs import token_file

SPECIAL = np.isin(np.arange(40), [0, 1, 2, 3])
NONE = np.zeros(40, bool)
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def examples() -> SentencePairs:
    chance = np.random.default_rng(0)
    documents = [chance.integers(4, 40, chance.integers(1, 50)).tolist() for _ in range(12)]
    marks = SentenceMarks(np.arange(40) % 5 == 0, NONE, SPECIAL, NONE)
    vocabulary = Vocabulary(2, 3, SPECIAL)
    file = token_file(documents, 0, 1)
    return SentencePairs(file, 24, False, 0.2, vocabulary, "0", marks=marks)


@pytest.mark.parametrize("kind", sorted(NEXT_SENTENCE_MODEL.names))
def test_both_losses_are_those_of_transformers(kind: str) -> None:
    made, loss = examples(), NextSentenceLoss()
    narrow = {"embedding_size": 8, "intra_bottleneck_size": 16} if kind == "mobilebert" else {}
    special = {"pad_token_id": 3}
    config = build.model_config(kind, SHAPE | narrow, 40, 24, special, NEXT_SENTENCE_MODEL)
    model = build.new_model(config, 0, NEXT_SENTENCE_MODEL).eval()
    rows = range(20)
    batch = made.batch(rows)
    labels = torch.full_like(batch["input_ids"], -100)
    scored = batch["targets"] != -100
    assert (batch["next_sentence"] == -100).any()
    for number, (places, some) in enumerate(zip(batch["places"], scored, strict=True)):
        labels[number, places[some]] = batch["targets"][number, some]
    names = ("input_ids", "attention_mask", "token_type_ids")
    theirs = model(**{name: batch[name] for name in names}, labels=labels,
                   next_sentence_label=batch["next_sentence"])  # fmt: skip
    sums, weights = loss.sums(model, batch), loss.weights(made, rows)
    parts = sums["objective"] / torch.tensor(weights)
    assert parts.sum().item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    figures = loss.figures({name: each.detach().numpy() for name, each in sums.items()},
                           made.count(rows))  # fmt: skip
    assert figures["loss"] + figures["next_sentence_loss"] == pytest.approx(theirs.loss.item())
    paired = batch["next_sentence"] != -100
    right = (theirs.seq_relationship_logits.argmax(1) == batch["next_sentence"])[paired]
    assert figures["next_sentence_accuracy"] == pytest.approx(float(right.float().mean()))


def test_the_output_layer_of_pairs_is_no_hidden_matrix() -> None:
    config = build.model_config("bert", SHAPE, 40, 24, {}, NEXT_SENTENCE_MODEL)
    found = muon.hidden(build.new_model(config, 0, NEXT_SENTENCE_MODEL))
    assert "bert.pooler.dense.weight" in found
    assert not any("seq_relationship" in name for name in found)
