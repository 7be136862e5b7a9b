"""Classification: predict a label, several labels or a number for each text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config import jobs
from llmkit.config.schema import Config
from llmkit.data.examples import order
from llmkit.data.examples.encoded import Encoded
from llmkit.data.records import dataset
from llmkit.data.records.dataset import Labelled
from llmkit.data.records.labels import REGRESSION, SINGLE
from llmkit.data.text import fingerprints
from llmkit.data.text.fingerprints import Fingerprints
from llmkit.errors import ConfigError
from llmkit.evaluation import classifiers, label_metrics
from llmkit.inference import classify
from llmkit.models import build, classifier, tokenizer_saving
from llmkit.models import tokenizer as tokenizers
from llmkit.models.classifier import ClassifierHead
from llmkit.models.control_tokens import control_tokens
from llmkit.models.pretrained import Pretrained, open_model
from llmkit.models.sizes import settings_of_size
from llmkit.progress import Say, Watch
from llmkit.reporting import held_out, plots, summary
from llmkit.storage import atomic, outputs
from llmkit.storage.strict_json import json_text
from llmkit.training import run_directory
from llmkit.training.tasks import defaults
from llmkit.training.tasks.classification_loss import ClassificationLoss, balanced_weights
from llmkit.training.tasks.task import Examples, Loss, Rows, Session, Task

_ARCHITECTURE = "modernbert"
"""Architecture of a new classifier: the encoder that learns fastest from random weights."""


@dataclass(frozen=True)
class Classification(Task):
    """Fine-tuning of text classifiers."""

    session: Session
    asked: Config
    config: Config
    pretrained: Pretrained | None
    data: Labelled
    tokenizer: PreTrainedTokenizerFast
    model_config: PretrainedConfig
    encoded: dict[str, Encoded]
    """`train`, and `validation` and `test` if there are any."""

    command = "finetune"
    unit = "examples"
    purpose = build.CLASSIFIER_MODEL

    @classmethod
    def open(cls, asked: Config, pretrained: Pretrained | None, session: Session) -> Self:
        """Read and tokenize the rows, with a new tokenizer if none is given."""
        config, console = asked, session.console
        if pretrained is None:
            config = asked.changed(model=asked.model.filled(architecture=_ARCHITECTURE))
        given = pretrained.tokenizer if pretrained else tokenizers.configured_tokenizer(config)
        model = config.model
        if pretrained is not None:
            classifier.existing_config(pretrained, model.config)
        else:
            build.fill_settings(model.architecture, model.config, build.CLASSIFIER_MODEL)
        data = dataset.load_labelled(
            config, session.sources, session.watch, console.say, console.warn, given
        )
        _check_kind(config, data)
        tokenizer = given or _trained_tokenizer(config, data, console.say)
        classifier.set_padding(tokenizer)
        made, length = _shape(config, pretrained, data, tokenizer)
        tokenizer.model_max_length = length
        tokenizers.read_as_text(tokenizer)  # as in training
        is_new_pair = len(data.train.texts[0]) > 1 and not _keeps_head(pretrained, made)
        if is_new_pair and (between := classifier.separate_pairs(tokenizer)):
            console.say(f"pairs: the tokenizer joins the two texts with {between}")
        tokenizer = tokenizer_saving.savable_tokenizer(tokenizer, made)
        tables = [table for table in (data.train, data.validation, data.test) if table is not None]
        rows = (texts for table in tables for texts in table.texts)
        if found := control_tokens(tokenizer).warning(rows, "row"):
            console.warn(found)
        encoded = _encoded(data, tokenizer, length, session.watch)
        data.report["lengths"] = {name: each.length_report() for name, each in encoded.items()}
        columns = data.data.changed(max_length=length, problem_type=data.labels.kind)
        config = _with_defaults(config.changed(data=columns), data, pretrained, made)
        return cls(session, asked, config, pretrained, data, tokenizer, made, encoded)

    @classmethod
    def outline(
        cls, asked: Config, pretrained: Pretrained | None, session: Session
    ) -> dict[str, Any]:
        """The data report, lengths, and the size of the model."""
        task = cls.open(asked, pretrained, session)
        with torch.device("meta"):
            parameters = build.classifier(task.model_config, seed=0).num_parameters()
        return {
            "command": cls.command,
            "run_dir": str(run_directory.locate_run(asked, cls.command)),
            "architecture": task.model_config.model_type,
            "parameters": parameters,
            "max_length": task.config.data.max_length,
            **task.data.report,
        }

    @property
    def examples(self) -> Encoded:
        """The tokenized training rows."""
        return self.encoded["train"]

    @property
    def validation(self) -> Encoded | None:
        """The tokenized held-out rows."""
        return self.encoded.get("validation")

    @property
    def tokens_per_example(self) -> int:
        """The median length."""
        return int(np.median(self.examples.lengths))

    @cached_property
    def content(self) -> dict[str, str]:
        """The hashes of the tables and of the training ids."""
        tables = {"training data": self.data.train, "validation data": self.data.validation}
        found = {name: table.fingerprint for name, table in tables.items() if table is not None}
        ids = hashlib.sha256(self.examples.ids.tobytes()).hexdigest()
        return {**found, "tokens of the training data": ids}

    @property
    def data_report(self) -> Mapping[str, Any]:
        """What was found in the rows."""
        return self.data.report

    def begin(self) -> PreTrainedModel:
        """New weights from the seed, or a head on the weights of the given model."""
        seed = self.config.seed
        if self.pretrained is None:
            return build.classifier(self.model_config, seed)
        console = self.session.console
        return classifier.load_body(self.pretrained, self.model_config, seed, console)

    def equip(self, model: PreTrainedModel, begun: bool) -> PreTrainedModel:
        """Set the unit of a regression, and freeze weights that are not trained."""
        if self.data.labels.kind == REGRESSION:
            is_new = begun and not _keeps_head(self.pretrained, self.model_config)
            classifier.fit_number_head(model, self.data.train.targets, is_new)
        classifier.freeze(model, self.config.train.freeze)
        return model

    def head(self, model: PreTrainedModel) -> Collection[str]:
        """The classification head."""
        return set(classifier.head_weights(model))

    def losses(self, model: PreTrainedModel) -> Callable[[Examples | None], Loss]:
        """The same loss for all examples."""
        labels, train, targets = self.data.labels, self.config.train, self.examples.targets
        weights = None
        if train.class_weights == "balanced" and targets is not None:
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

    def rows_of_step(self, step: int, *, global_batch_size: int, limit: int | None) -> Rows:
        """Every example once per epoch, batched by similar length."""
        return order.rows_by_length(
            step,
            lengths=self.examples.lengths,
            seed=self.config.seed,
            global_batch_size=global_batch_size,
            limit=limit,
        )

    def seen(self) -> Fingerprints:
        """The fingerprints of the training rows."""
        return fingerprints.of_rows(self.data.train.texts, self.tokenizer)

    def results(
        self, loss: Loss, validation: Examples | None, figures: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Evaluate the model in `final/` and the baselines on validation and test data; writes
        `evaluation.json`, and what became of each held-out row."""
        data, session = self.data, self.session
        device = session.processes.device
        final = classify.open_classifier(open_model(figures["model_dir"]), device, "fp32")
        fitted = classifiers.fitted_baselines(data.train, session.console.say)
        directory = Path(figures["run_dir"])
        measured, pictures = {}, {}
        for name, table in (("validation", data.validation), ("test", data.test)):
            if table is None:
                continue
            seed = self.config.seed
            measured[name], rows = classifiers.measure_trained(
                final, table, fitted, seed, session.watch
            )
            if name == "validation":
                held_out.write_held_out(directory, rows)
            if matrix := measured[name].get("confusion_matrix"):
                picture = directory / f"confusion_matrix_{name}.png"
                title = f"{directory.name}, {name}"
                plots.draw_confusion_matrix(matrix, data.labels.names, picture, title)
                pictures[f"confusion_matrix_{name}"] = str(picture)
        text = json_text(measured, indent=1)
        atomic.replace_text(directory / outputs.MEASURED, text + "\n")
        shown = {name: classifiers.without_bulky(found) for name, found in measured.items()}
        held = shown.pop("validation", {})
        baseline = held.pop("baseline", {})
        found = {"validation": held, "baseline": baseline, **shown, "pictures": pictures}
        self._judge(found)
        return found

    def _judge(self, found: Mapping[str, Any]) -> None:
        """Warn if the metrics of a run show that little was learned."""
        validation = {**found["validation"], "baseline": found["baseline"]}
        advice = summary.PRETRAINED if self.from_scratch else summary.LONGER
        for name, figures in (("validation", validation), ("test", found.get("test", {}))):
            if figures.get("examples"):
                for text in summary.of_classifier(name, figures, advice):
                    self.session.console.warn(text)


def _with_defaults(
    config: Config, data: Labelled, pretrained: Pretrained | None, made: PretrainedConfig
) -> Config:
    """The config with every training `auto` resolved for this data and model."""
    if pretrained is None:
        trained = "new"
    elif config.model.lora.r is not None:
        trained = "lora"
    elif config.train.freeze == "body":
        trained = "head"
    else:
        trained = "again" if _keeps_head(pretrained, made) else "all"
    kind, hidden = data.labels.kind, int(made.get_text_config().hidden_size)
    metric = "loss" if kind == REGRESSION else "f1_macro"
    train = defaults.finetuning(config.train, len(data.train), hidden, trained, metric)
    figures = ("loss", *jobs.LABEL_METRICS[kind])
    defaults.check_best(train, figures, validated=data.validation is not None)
    return config.changed(train=train)


def _keeps_head(pretrained: Pretrained | None, made: PretrainedConfig) -> bool:
    """Whether the given model is already a classifier with the same labels."""
    return pretrained is not None and classifier.keeps_head(pretrained, made)


def _check_kind(config: Config, data: Labelled) -> None:
    """Raises ConfigError for class settings in a regression."""
    train = config.train
    for key, default in (("class_weights", "none"), ("label_smoothing_factor", 0.0)):
        if data.labels.kind == REGRESSION and getattr(train, key) != default:
            raise ConfigError(
                "a regression has no classes",
                where=f"train.{key}",
                next=f"remove it, or set data.problem_type={SINGLE}",
            )


def _trained_tokenizer(config: Config, data: Labelled, say: Say) -> PreTrainedTokenizerFast:
    texts = [text for texts in data.train.texts for text in texts]
    size = config.tokenizer.vocab_size
    if size == "auto":
        size = tokenizers.auto_vocab_size(sum(len(text.encode()) for text in texts))
    made = tokenizers.train_bpe_with_frame(texts, size, config.model.architecture)
    say(f"tokenizer: {len(made):,} tokens, byte-level BPE trained on the training texts")
    return made


def _shape(
    config: Config,
    pretrained: Pretrained | None,
    data: Labelled,
    tokenizer: PreTrainedTokenizerFast,
) -> tuple[PretrainedConfig, int]:
    """The model config with its head, and the maximum number of tokens of a text."""
    model, requested = config.model, config.data.max_length
    if pretrained is None:
        length = classifier.DEFAULT_MAX_LENGTH if requested == "auto" else requested
        settings = model.config
        if model.size is not None:
            settings = settings_of_size(
                model.size,
                model.architecture,
                settings,
                len(tokenizer),
                length,
                build.CLASSIFIER_MODEL,
            )
        shape = classifier.new_config(model.architecture, settings, tokenizer, length)
    else:
        shape = classifier.existing_config(pretrained, model.config)
    most = classifier.longest_text(shape, tokenizer)
    if requested != "auto" and requested > most:
        raise ConfigError(
            f"data.max_length={requested} exceeds the model's maximum of {most} tokens",
            where="data.max_length",
            next=f"set data.max_length={most} or less",
        )
    tokenizers.check_fit(tokenizer, shape, config)
    head = ClassifierHead(data.labels.kind, data.labels.names)
    head.describe(shape, tokenizer.pad_token_id)
    text, label = data.data.text_column, data.data.label_column
    classifier.remember_columns(shape, _columns(text), _columns(label))
    return shape, most if requested == "auto" else requested


def _columns(named: Any) -> tuple[str | int, ...]:
    return named if isinstance(named, tuple) else () if named is None else (named,)


def _encoded(
    data: Labelled, tokenizer: PreTrainedTokenizerFast, length: int, watch: Watch
) -> dict[str, Encoded]:
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    tables = {name: table for name, table in parts.items() if table is not None}
    with watch("tokenizing", sum(map(len, tables.values()))) as advance:
        return {name: table.examples(tokenizer, length, advance) for name, table in tables.items()}
