"""Extractive question answering: predict the span of a context that answers a question."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config import jobs
from llmkit.data.examples.answers import AnswerWindows, QuestionEncoder
from llmkit.data.records import question_dataset
from llmkit.data.records.dataset import Labelled
from llmkit.data.records.questions import UNANSWERED, Answers, QuestionTable
from llmkit.errors import ConfigError
from llmkit.evaluation.labels.answers import (
    AnswerEvaluation,
    answer_figures_from,
    best_threshold,
    read_table,
)
from llmkit.inference.labels import answer
from llmkit.inference.labels.answer import Answerer, position_losses, window_answers
from llmkit.models import build, classifier
from llmkit.progress import Advance
from llmkit.storage import atomic
from llmkit.storage.strict_json import json_text
from llmkit.training.tasks.labels.labelling import Labelling, column_names
from llmkit.training.tasks.task import Batch, Examples, Loss, Sums

_Data = Labelled[QuestionTable, Answers]


@dataclass(frozen=True)
class AnswerLoss(Loss):
    """The mean of the cross entropies of the first and the last token of the answer of a window,
    which is the first token of the window where it holds none (Devlin et al. 2019)."""

    n_windows: int
    """Number of windows of the validation data."""
    longest: int
    figures_of: Callable[[NDArray[np.float64]], dict[str, float]]
    """Computes the metrics from what is found in each window."""

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Objective and loss; in validation also what is found in each window, 0 for those of other
        batches: an answer may be in any window of its row."""
        own = ("labels", "context", "windows")
        made = model(**{name: value for name, value in batch.items() if name not in own})
        labels, attention = batch["labels"], batch["attention_mask"]
        starts, first = position_losses(made.start_logits, attention, labels[:, 0])
        ends, last = position_losses(made.end_logits, attention, labels[:, 1])
        losses = (first + last) / 2
        sums = {"objective": losses.sum(), "loss": losses.sum()}
        if model.training:
            return sums
        known = batch["windows"] >= 0
        found = torch.zeros(self.n_windows, 5, dtype=torch.float64, device=labels.device)
        read = window_answers(starts, ends, batch["context"], losses, self.longest)
        found[batch["windows"][known]] = read[known]
        return {**sums, "found": found}

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """The mean loss per window, and the metrics of the answers."""
        loss = float(sums["loss"]) / max(1, predictions)
        return {"loss": loss, **self.figures_of(sums["found"].astype(np.float64))}


@dataclass(frozen=True)
class Answering(Labelling[_Data]):
    """Fine-tuning of models that find answers in contexts."""

    unit = "windows"
    purpose = build.ANSWER_MODEL
    load = staticmethod(question_dataset.load_questions)
    evaluation = AnswerEvaluation()

    @classmethod
    def describe(
        cls, data: _Data, shape: PretrainedConfig, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        """The columns, whether there may be no answer, and the padding; raises ConfigError for a
        model whose first token sees nothing of the context."""
        if classifier.sees_only_before(shape):
            raise ConfigError(
                f"{shape.model_type} reads only forward, so no token can stand for no answer",
                where="model.name_or_path, model.architecture",
                next="take an encoder, such as bert, roberta or modernbert",
            )
        shape.pad_token_id = tokenizer.pad_token_id
        shape.num_labels = 2
        text, label = data.data.text_column, data.data.label_column
        may_be_none = UNANSWERED in data.labels.classes
        facts = {answer.MAY_BE_NONE: may_be_none}
        classifier.remember_columns(shape, column_names(text), column_names(label), facts)

    @classmethod
    def encoder(
        cls, shape: PretrainedConfig, tokenizer: PreTrainedTokenizerFast
    ) -> Callable[[QuestionTable, Advance], AnswerWindows]:
        """Questions with windows of their contexts, and the answers in them."""
        made = QuestionEncoder(tokenizer, int(tokenizer.model_max_length))
        return lambda table, advance: made.encode(table.texts, table.answers, advance)

    @classmethod
    def metrics_of(cls, data: _Data) -> tuple[str, Sequence[str]]:
        """F1, and exact match."""
        return "f1", jobs.ANSWER_METRICS

    @property
    def longest(self) -> int:
        """The maximum number of tokens of an answer."""
        return max(answer.USUAL_LONGEST, cast(AnswerWindows, self.examples).longest_answer)

    def losses(self, model: PreTrainedModel) -> Callable[[Examples | None], Loss]:
        """The same loss for all examples: a subset has the windows of the whole validation data."""
        table, windows = self.data.validation, self.validation
        figures_of: Callable[[NDArray[np.float64]], dict[str, float]] = lambda found: {}  # noqa: E731
        if table is not None:
            figures_of = answer_figures_from(cast(AnswerWindows, windows), table)
        loss = AnswerLoss(0 if windows is None else len(windows), self.longest, figures_of)
        return lambda examples: loss

    def accompany(self, model: PreTrainedModel, directory: Path) -> None:
        """Records the longest answer, and the threshold of no answer with the highest F1 on
        validation data."""
        path = directory / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config[classifier.MARK][answer.LONGEST_ANSWER] = self.longest
        table = self.data.validation
        if table is not None and UNANSWERED in self.data.labels.classes:
            encoder = QuestionEncoder(self.tokenizer, int(self.tokenizer.model_max_length))
            opened = Answerer(model.eval(), encoder, "fp32", longest=self.longest, threshold=0.0)
            _, found, _ = read_table(opened, table, None, self.session.watch)
            config[classifier.MARK][answer.THRESHOLD_OF_NONE] = best_threshold(table, found)
        atomic.replace_text(path, json_text(config, indent=2) + "\n")
