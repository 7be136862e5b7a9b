"""How well a model with a next-sentence head tells whether one segment continues another."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

from llmkit.data.examples.blocks import UNSCORED, Vocabulary
from llmkit.data.examples.sentence_pairs import SentencePairs, sentence_marks
from llmkit.data.text.token_file import TokenFile
from llmkit.distributed.processes import Processes
from llmkit.models import pretrained
from llmkit.models import tokenizer as tokenizers
from llmkit.models.build import Purpose
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Watch

_UNSUITABLE = "fnet"  # mixes padding with the text
_CLASSES = modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES
_HEADED = modeling_auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES
_NAMES = {kind: _CLASSES[kind] for kind in _HEADED if kind in _CLASSES and kind != _UNSUITABLE}

NEXT_SENTENCE_MODEL = Purpose(
    "model with a next-sentence head",
    modeling_auto.AutoModelForPreTraining,
    _NAMES,
    modeling_auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING,
    ", ".join(sorted(_NAMES)),
    "data.block_size",
)

GUESSED = {"next_sentence_loss": math.log(2), "next_sentence_accuracy": 0.5}
"""The figures of a guess: half of the pairs are of each kind."""

NEXT_SENTENCE_PROTOCOL = (
    "pairs of segments of the text, drawn as in validation, half of them neighbours: chance is an "
    "accuracy of 0.5"
)

_ROWS_AT_ONCE = 16
_PROBABILITY = 0.15  # of hidden tokens, as in BERT's training; they do not depend on the model

_READ = ("input_ids", "attention_mask", "token_type_ids")


def has_next_sentence_head(config: PretrainedConfig) -> bool:
    """Whether a model was saved with the heads of both of BERT's objectives."""
    return bool(set(config.architectures or ()) & set(_NAMES.values()))


def pair_logits(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The logits of the predicted tokens [rows, most, vocabulary], and those of the next sentence
    [rows, 2]."""
    inputs = {name: batch[name] for name in _READ if name in batch}
    hidden, pooled = model.base_model(**inputs)[:2]
    tokens, related = model.cls(hidden.take_along_dim(batch["places"][..., None], 1), pooled)
    return tokens, related


def relation_sums(related: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The cross entropy in nats of the rows with two segments, how many are right, and their
    number."""
    loss = functional.cross_entropy(related.float(), labels, ignore_index=UNSCORED, reduction="sum")
    right, paired = related.argmax(1) == labels, labels != UNSCORED
    sums = {"loss": loss, "hits": right.sum(), "pairs": paired.sum()}
    return {f"next_sentence_{name}": value for name, value in sums.items()}


def relation_figures(sums: Any) -> dict[str, float]:
    """Loss in nats per pair and accuracy; empty without a pair."""
    found = {name: float(sums[f"next_sentence_{name}"]) for name in ("loss", "hits", "pairs")}
    if not found["pairs"]:
        return {}
    return {
        "next_sentence_loss": found["loss"] / found["pairs"],
        "next_sentence_accuracy": found["hits"] / found["pairs"],
    }


@torch.no_grad()
def measure_next_sentence(
    opened: Pretrained, tokens: TokenFile, length: int, processes: Processes, watch: Watch
) -> dict[str, float]:
    """Loss and accuracy on pairs of segments of a text, in fp32, and the number of pairs: those
    that validation draws from the same text in rows of the same `length`, tokens hidden as in
    training."""
    tokenizer = opened.tokenizer
    vocabulary = Vocabulary(
        int(tokenizer.mask_token_id or 0),
        int(tokenizer.pad_token_id or 0),
        tokenizers.special_tokens(tokenizer),
    )
    how = (length, False, _PROBABILITY, vocabulary, "validation")
    pairs = SentencePairs(tokens, *how, marks=sentence_marks(tokenizer))
    mine = range(processes.rank, len(pairs), processes.count)
    if not pairs.pairs(range(len(pairs))):
        return {}
    model = pretrained.load_model(opened, NEXT_SENTENCE_MODEL).eval().to(processes.device)
    totals = torch.zeros(3, dtype=torch.float64, device=processes.device)
    with watch("next sentence", len(mine)) as advance:
        for first in range(0, len(mine), _ROWS_AT_ONCE):
            rows = mine[first : first + _ROWS_AT_ONCE]
            batch = {name: value.to(model.device) for name, value in pairs.batch(rows).items()}
            _, related = pair_logits(model, batch)
            sums = relation_sums(related, batch["next_sentence"])
            totals += torch.stack([value.double() for value in sums.values()])
            advance(len(rows))
    summed = dict(zip(sums, processes.sum(totals).tolist(), strict=True))
    return {"sentence_pairs": int(summed["next_sentence_pairs"]), **relation_figures(summed)}
