"""Classification: predict a label, several labels or a number for each text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config import jobs
from llmkit.config.schema import Config
from llmkit.data.examples.encoded import Encoded, LabelledTable
from llmkit.data.records import dataset
from llmkit.data.records.dataset import Labelled
from llmkit.data.records.labels import REGRESSION, SINGLE, Labels
from llmkit.errors import ConfigError
from llmkit.evaluation.labels import label_metrics
from llmkit.evaluation.labels.classifiers import ClassifierEvaluation
from llmkit.models import build, classifier
from llmkit.models.classifier import ClassifierHead
from llmkit.progress import Advance
from llmkit.training.tasks.labels.classification_loss import ClassificationLoss, balanced_weights
from llmkit.training.tasks.labels.labelling import Labelling, column_names
from llmkit.training.tasks.task import Examples, Loss, Session

_Data = Labelled[LabelledTable, Labels]


@dataclass(frozen=True)
class Classification(Labelling[_Data]):
    """Fine-tuning of text classifiers."""

    unit = "examples"
    purpose = build.CLASSIFIER_MODEL
    load = staticmethod(dataset.load_labelled)
    evaluation = ClassifierEvaluation()

    @classmethod
    def read(cls, config: Config, session: Session, given: PreTrainedTokenizerFast | None) -> _Data:
        """Also raises ConfigError for settings that do not fit the labels."""
        data = super().read(config, session, given)
        _check_kind(config, data)
        return data

    @classmethod
    def describe(
        cls, data: _Data, shape: PretrainedConfig, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        """A head with an output for each label, or for a number, and the columns."""
        ClassifierHead(data.labels.kind, data.labels.names).describe(shape, tokenizer.pad_token_id)
        text, label = data.data.text_column, data.data.label_column
        classifier.remember_columns(shape, column_names(text), column_names(label))

    @classmethod
    def encoder(
        cls, shape: PretrainedConfig, tokenizer: PreTrainedTokenizerFast
    ) -> Callable[[LabelledTable, Advance], Encoded]:
        """The texts, truncated, with their labels."""
        length = int(tokenizer.model_max_length)
        return lambda table, advance: table.examples(tokenizer, length, advance)

    @classmethod
    def metrics_of(cls, data: _Data) -> tuple[str, Sequence[str]]:
        """Macro F1, or the loss of a regression; and the metrics of the kind of labels."""
        kind = data.labels.kind
        return "loss" if kind == REGRESSION else "f1_macro", jobs.LABEL_METRICS[kind]

    def equip(self, model: PreTrainedModel, begun: bool) -> PreTrainedModel:
        """Set the unit of a regression, and freeze weights that are not trained."""
        if self.data.labels.kind == REGRESSION:
            is_new = begun and not self.keeps_head
            classifier.fit_number_head(model, self.data.train.targets, is_new)
        return super().equip(model, begun)

    def losses(self, model: PreTrainedModel) -> Callable[[Examples | None], Loss]:
        """The same loss for all examples."""
        labels, train, targets = self.data.labels, self.config.train, self.data.train.targets
        weights = None
        if train.class_weights == "balanced":
            weights = balanced_weights(labels.kind, targets, len(labels))
        loss = ClassificationLoss(
            labels.kind,
            len(labels),
            label_metrics.figures_from(labels.kind),
            weights,
            train.label_smoothing_factor,
            classifier.head_unit(model),
        )
        return lambda examples: loss


def _check_kind(config: Config, data: _Data) -> None:
    """Raises ConfigError for class settings in a regression."""
    train = config.train
    for key, default in (("class_weights", "none"), ("label_smoothing_factor", 0.0)):
        if data.labels.kind == REGRESSION and getattr(train, key) != default:
            raise ConfigError(
                "a regression has no classes",
                where=f"train.{key}",
                next=f"remove it, or set data.problem_type={SINGLE}",
            )
