"""BERT's two objectives: hidden tokens, and whether one segment continues another (Devlin et al.
2019, arXiv 1810.04805)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmkit.config import jobs
from llmkit.config.schema import Config
from llmkit.data.examples.mixture import Mixture
from llmkit.data.examples.sentence_pairs import SentencePairs, sentence_marks
from llmkit.data.text.token_file import TokenFile
from llmkit.errors import ConfigError, DataError
from llmkit.evaluation.next_sentence import (
    GUESSED,
    NEXT_SENTENCE_MODEL,
    pair_logits,
    relation_figures,
    relation_sums,
)
from llmkit.models import pretrained
from llmkit.models.pretrained import Pretrained
from llmkit.training.tasks.masked import Masked, MaskedLoss, masked_sums
from llmkit.training.tasks.task import Batch, Examples, Loss, Rows, Session, Sums

_HEADS = ("seq_relationship", "pooler")
"""Weights that a model without this objective lacks."""


class NextSentenceLoss(MaskedLoss):
    """The mean cross entropy of hidden tokens, plus that of pairs of segments."""

    def __init__(self) -> None:
        """Documents are not isolated: a row is one pair."""
        super().__init__(None, None)

    def weights(self, examples: Examples, rows: Rows) -> tuple[float, ...]:
        """The number of predicted tokens, and that of pairs."""
        return examples.count(rows), cast(SentencePairs, examples).pairs(rows)

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Both objectives, the loss of hidden tokens in nats, and in validation the number of
        correct predictions and the sums of pairs."""
        logits, related = pair_logits(model, batch)
        sums = masked_sums(logits, batch["targets"], model.training)
        pairs = relation_sums(related, batch["next_sentence"])
        sums["objective"] = torch.stack([sums["objective"], pairs["next_sentence_loss"]])
        return sums if model.training else {**sums, **pairs}

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """Loss in nats per hidden token, and accuracy; the same for pairs, where they are
        measured."""
        pairs = relation_figures(sums) if "next_sentence_pairs" in sums else {}
        return {**super().figures(sums, predictions), **pairs}

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """[rows, most, vocabulary], the logits at the predicted positions."""
        return pair_logits(model, batch)[0]


class NextSentence(Masked):
    """Pretraining of masked language models that also predict the next sentence."""

    purpose = NEXT_SENTENCE_MODEL
    metrics = (*jobs.MASKED_METRICS, *jobs.NEXT_SENTENCE_METRICS)
    framing = 3
    architecture = "bert"

    @classmethod
    def resolve_objective(cls, config: Config, pretrained: Pretrained | None) -> Config:
        """Also refuses models without a next-sentence head, and keeps no documents apart: the two
        segments of a row attend to each other."""
        config = super().resolve_objective(config, pretrained)
        kind = config.model.architecture if pretrained is None else pretrained.config.model_type
        if kind not in cls.purpose.names:
            raise ConfigError(
                f"{kind} has no next-sentence head",
                where="train.next_sentence",
                next=f"choose one of {cls.purpose.common}, or remove train.next_sentence",
            )
        return config.changed(data={"isolate_documents": False})

    @classmethod
    def open(cls, asked: Config, pretrained: Pretrained | None, session: Session) -> Self:
        """Also reports how many passages have two sentences; raises DataError if none has."""
        task = super().open(asked, pretrained, session)
        for what, examples in (("training", task.examples), ("validation", task.validation)):
            if examples is not None:
                task._check_pairs(what, examples)
        return task

    def _check_pairs(self, what: str, examples: Any) -> None:
        parts: Mapping[str, Any] = {"": examples}
        if isinstance(examples, Mixture):
            parts = examples.domains
        for name, part in parts.items():
            of = f"{what} text{f' of {name}' if name else ''}"
            found, n = part.pairs(range(len(part))), len(part)
            if not found:
                raise DataError(
                    f"no passage of the {of} has two sentences, or it has one passage only: no "
                    "pair can be drawn",
                    where="train.next_sentence, data.document",
                    next="name longer text; with data.document=line each line is a document, and "
                    "blank_line or file keeps the lines of a document together",
                )
            self.session.console.say(f"next sentence: {found:,} of {n:,} passages of the {of} have "
                                     "two sentences")  # fmt: skip

    def blocks(self, file: TokenFile, held_out: bool) -> SentencePairs:
        """Pairs of segments; those of validation are the same in every run."""
        return SentencePairs(**self.masking(file, held_out), marks=sentence_marks(self.tokenizer))

    def losses_of(
        self, model: PreTrainedModel, isolated: bool
    ) -> Callable[[Any], NextSentenceLoss]:
        """Makes the same loss for all examples."""
        loss = NextSentenceLoss()
        return lambda examples: loss

    def begin(self) -> PreTrainedModel:
        """New weights from the seed, or those of the given model with the head that it lacks."""
        if self.pretrained is None:
            return super().begin()
        torch.manual_seed(self.config.seed)
        return pretrained.load_model(
            self.pretrained,
            self.purpose,
            may_be_new=lambda name: any(each in name for each in _HEADS),
            say=self.session.console.warn,
        )

    def results(
        self, loss: Loss, validation: Examples | None, figures: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Also the baseline of a guess for the next sentence."""
        found = super().results(loss, validation, figures)
        if "baseline" in found:
            found["baseline"]["chance"] = GUESSED
        return found
