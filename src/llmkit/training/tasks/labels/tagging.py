"""Tagging: predict a tag for each word, such as named entities, parts of speech, or the roles of a
marked predicate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config import jobs
from llmkit.data.examples.tagged import TaggedTable, TokenWindows, WindowEncoder
from llmkit.data.records.dataset import Labelled
from llmkit.data.records.labels import SINGLE
from llmkit.data.records.tagging import tagged_dataset
from llmkit.data.records.tagging.tags import TagSet
from llmkit.evaluation.labels import taggers
from llmkit.evaluation.labels.taggers import TaggerEvaluation
from llmkit.inference.labels import tag
from llmkit.models import build, classifier
from llmkit.models.classifier import ClassifierHead
from llmkit.progress import Advance
from llmkit.training.tasks.labels.classification_loss import balanced_weights, class_sums
from llmkit.training.tasks.labels.labelling import Labelling, column_names
from llmkit.training.tasks.task import (
    IGNORED,
    Batch,
    Examples,
    LabelledExamples,
    Loss,
    Rows,
    Sums,
)

_Data = Labelled[TaggedTable, TagSet]


@dataclass(frozen=True)
class TaggingLoss(Loss):
    """Cross entropy of the tag of each word, at the token that predicts it.

    The reported loss is plain, in nats per word; class weights and label smoothing affect only the
    objective.
    """

    n_words: int
    """Number of words of the validation data."""
    figures_of: Callable[[NDArray[np.int64]], dict[str, float]]
    """Computes the metrics from the predicted tags [words], -1 where a word was not asked for."""
    class_weights: NDArray[np.float32] | None = None
    """[tags]"""
    label_smoothing: float = 0.0

    def weight(self, examples: Examples, rows: Rows) -> float:
        """The sum of the class weights of the tags, like torch's weighted mean."""
        if self.class_weights is None:
            return examples.count(rows)
        labels = cast(LabelledExamples, examples).labels(rows)
        return float(self.class_weights[labels].sum(dtype=np.float64))

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Objective and loss; in validation also `tags` [words], each predicted tag plus 1, and 0
        for words of other batches: entities need the tags of whole rows."""
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "words")}
        logits = model(**inputs).logits.float()  # [windows, tokens, tags]
        labels = batch["labels"]
        flat = logits.flatten(0, 1), labels.flatten()
        sums = class_sums(*flat, self.class_weights, self.label_smoothing)
        if model.training:
            return sums
        scored = labels != IGNORED
        tags = torch.zeros(self.n_words, dtype=torch.int64, device=labels.device)
        tags[batch["words"][scored]] = logits[scored].argmax(1) + 1
        return {**sums, "tags": tags}

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """The mean loss per word, and the metrics of the predicted tags."""
        loss = float(sums["loss"]) / max(1, predictions)
        return {"loss": loss, **self.figures_of(sums["tags"].astype(np.int64) - 1)}


@dataclass(frozen=True)
class Tagging(Labelling[_Data]):
    """Fine-tuning of taggers of words."""

    unit = "words"
    purpose = build.TAGGER_MODEL
    load = staticmethod(tagged_dataset.load_tagged)
    evaluation = TaggerEvaluation()

    @classmethod
    def describe(
        cls, data: _Data, shape: PretrainedConfig, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        """A head with an output for each tag, the columns, the scheme, and the token of a word that
        predicts its tag."""
        ClassifierHead("", data.labels.names).describe(shape, tokenizer.pad_token_id)
        text, label, mark = (
            getattr(data.data, f"{name}_column") for name in ("text", "label", "mark")
        )
        facts = {"mark_column": mark, tag.SCHEME: data.labels.scheme}
        facts[tag.BY_LAST] = classifier.sees_only_before(shape)
        classifier.remember_columns(shape, column_names(text), column_names(label), facts)

    @classmethod
    def encoder(
        cls, shape: PretrainedConfig, tokenizer: PreTrainedTokenizerFast
    ) -> Callable[[TaggedTable, Advance], TokenWindows]:
        """The texts in windows, with the tags of their words."""
        by_last = bool(classifier.remembered(shape, tag.BY_LAST))
        made = WindowEncoder(tokenizer, int(tokenizer.model_max_length), by_last)
        return lambda table, advance: made.encode(table.texts, table.words, table.targets, advance)

    @classmethod
    def metrics_of(cls, data: _Data) -> tuple[str, Sequence[str]]:
        """F1 of entities, or the accuracy of tags in a plain scheme; and all metrics."""
        if data.labels.has_entities:
            return "f1", jobs.TAG_METRICS["entities"]
        return "accuracy", jobs.TAG_METRICS["plain"]

    def losses(self, model: PreTrainedModel) -> Callable[[Examples | None], Loss]:
        """The same loss for all examples: a subset has the words of the whole validation data."""
        train, table = self.config.train, self.data.validation
        weights = None
        if train.class_weights == "balanced":
            weights = balanced_weights(SINGLE, self.data.train.targets, len(self.data.labels))
        figures_of: Callable[[NDArray[np.int64]], dict[str, float]] = lambda tags: {}  # noqa: E731
        if table is not None:
            figures_of = taggers.tag_figures_from(cast(TokenWindows, self.validation), table)
        n_words = 0 if table is None else len(table.targets)
        loss = TaggingLoss(n_words, figures_of, weights, train.label_smoothing_factor)
        return lambda examples: loss
