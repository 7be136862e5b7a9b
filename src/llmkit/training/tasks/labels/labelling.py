"""What tasks that learn labels have in common: of texts, or of the words in them."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.schema import Config
from llmkit.data.records.dataset import Labelled
from llmkit.data.text import fingerprints
from llmkit.data.text.fingerprints import Fingerprints
from llmkit.errors import ConfigError
from llmkit.evaluation.labels.measuring import RowEvaluation, measure_finished, without_bulky
from llmkit.models import build, classifier, tokenizer_saving
from llmkit.models import tokenizer as tokenizers
from llmkit.models.control_tokens import control_tokens
from llmkit.models.pretrained import Pretrained, open_model
from llmkit.models.sizes import settings_of_size
from llmkit.progress import Advance, Say
from llmkit.reporting import held_out, plots, summary
from llmkit.reporting.evaluation_summary import confused_names, confused_unit
from llmkit.storage import atomic, outputs
from llmkit.storage.strict_json import json_text
from llmkit.training.tasks import defaults
from llmkit.training.tasks.finetuning import Finetuning, new_tokenizer
from llmkit.training.tasks.task import Examples, LabelledExamples, Loss, Session

_ARCHITECTURE = "modernbert"
"""Architecture of a new model: the encoder that learns fastest from random weights."""


class EncodedExamples(LabelledExamples, Protocol):
    """Tokenized examples with their labels, and a report of their lengths."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[examples], in tokens."""

    @property
    def id_bytes(self) -> bytes:
        """The token ids."""

    def length_report(self) -> dict[str, Any]:
        """What is reported of the lengths."""


D = TypeVar("D", bound=Labelled[Any, Any])


@dataclass(frozen=True)
class Labelling(Finetuning[EncodedExamples], Generic[D]):
    """Training of a model that labels texts, or the words in them."""

    data: D

    load: ClassVar[Any]
    """Reads, checks and splits the data, such as `load_labelled`."""
    evaluation: ClassVar[RowEvaluation[Any]]
    """How the finished model is measured on validation and test data."""

    @classmethod
    @abstractmethod
    def describe(cls, data: D, shape: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        """Describes the head in a model config, and how to read rows again."""

    @classmethod
    @abstractmethod
    def encoder(
        cls, shape: PretrainedConfig, tokenizer: PreTrainedTokenizerFast
    ) -> Callable[[Any, Advance], EncodedExamples]:
        """Tokenizes the rows of a table into examples of at most `tokenizer.model_max_length`
        tokens."""

    @classmethod
    @abstractmethod
    def metrics_of(cls, data: D) -> tuple[str, Sequence[str]]:
        """The default metric for the best model, and all metrics of a validation."""

    @classmethod
    def open(cls, asked: Config, pretrained: Pretrained | None, session: Session) -> Self:
        """Read and tokenize the rows, with a new tokenizer if none is given."""
        config, console = asked, session.console
        if pretrained is None:
            config = asked.changed(model=asked.model.filled(architecture=_ARCHITECTURE))
        given = pretrained.tokenizer if pretrained else tokenizers.configured_tokenizer(config)
        model = config.model
        if pretrained is not None:
            classifier.existing_config(pretrained, model.config, cls.purpose)
        else:
            build.fill_settings(model.architecture, model.config, cls.purpose)
        data = cls.read(config, session, given)
        texts = [text for texts in data.train.texts for text in texts]
        own = (texts, tokenizers.train_bpe_with_frame, "the training texts", console.say)
        tokenizer = given or new_tokenizer(config, *own)
        classifier.set_padding(tokenizer)
        made, length = cls._shape(config, pretrained, data, tokenizer)
        tokenizer.model_max_length = length
        tokenizers.read_as_text(tokenizer)  # as in training
        keeps_head = pretrained is not None and cls._keeps_head(pretrained, made)
        if not keeps_head:
            cls.prepare_tokenizer(data, tokenizer, console.say)
        tokenizer = tokenizer_saving.savable_tokenizer(tokenizer, made)
        rows = (texts for table in data.tables.values() for texts in table.texts)
        if found := control_tokens(tokenizer).warning(rows, "row"):
            console.warn(found)
        encode = cls.encoder(made, tokenizer)
        with session.watch("tokenizing", sum(map(len, data.tables.values()))) as advance:
            encoded = {name: encode(table, advance) for name, table in data.tables.items()}
        data.report["lengths"] = {name: each.length_report() for name, each in encoded.items()}
        hidden = int(made.get_text_config().hidden_size)
        metric, figures = cls.metrics_of(data)
        trained = _trained_part(config, keeps_head)
        train = defaults.finetuning(config.train, len(encoded["train"]), hidden, trained, metric)
        defaults.check_best(train, ("loss", *figures), validated=data.validation is not None)
        config = config.changed(data=data.data.changed(max_length=length), train=train)
        return cls(session, asked, config, pretrained, data, tokenizer, made, encoded)

    @classmethod
    def read(cls, config: Config, session: Session, given: PreTrainedTokenizerFast | None) -> D:
        """Reads, checks and splits the data, for the given tokenizer if there is one."""
        console = session.console
        found: D = cls.load(
            config, session.sources, session.watch, console.say, console.warn, given
        )
        return found

    @classmethod
    def prepare_tokenizer(cls, data: D, tokenizer: PreTrainedTokenizerFast, say: Say) -> None:
        """Adds a separator between the two texts of a pair, if the tokenizer of a model with a new
        head has none."""
        if len(data.train.texts[0]) > 1 and (between := classifier.separate_pairs(tokenizer)):
            say(f"pairs: the tokenizer joins the two texts with {between}")

    def freeze(self, model: PreTrainedModel) -> None:
        """Freezes what `train.freeze` names; without the head for low-rank updates."""
        classifier.freeze(model, self.config.train.freeze if self.lora is None else "body")

    @property
    def tokens_per_example(self) -> int:
        """The median length."""
        return int(np.median(self.examples.lengths))

    @cached_property
    def content(self) -> dict[str, str]:
        """The hashes of the tables and of the training ids."""
        tables = {"training data": self.data.train, "validation data": self.data.validation}
        found = {name: table.fingerprint for name, table in tables.items() if table is not None}
        ids = hashlib.sha256(self.examples.id_bytes).hexdigest()
        return {**found, "tokens of the training data": ids}

    @property
    def keeps_head(self) -> bool:
        """Whether the given model already has a head for the same labels."""
        given = self.pretrained
        return given is not None and self._keeps_head(given, self.model_config)

    def begin(self) -> PreTrainedModel:
        """New weights from the seed, or a head on the weights of the given model."""
        seed, console = self.config.seed, self.session.console
        if self.pretrained is None:
            return build.new_model(self.model_config, seed, self.purpose)
        return classifier.load_body(self.pretrained, self.model_config, seed, console, self.purpose)

    def equip(self, model: PreTrainedModel, begun: bool) -> PreTrainedModel:
        """Freeze weights that are not trained."""
        classifier.freeze(model, self.config.train.freeze)
        return model

    def head(self, model: PreTrainedModel) -> Collection[str]:
        """The weights above the body."""
        return set(classifier.head_weights(model))

    def seen(self) -> Fingerprints:
        """The fingerprints of the training rows."""
        return fingerprints.of_rows(self.data.train.texts, self.tokenizer)

    def results(
        self, loss: Loss, validation: Examples | None, figures: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Evaluate the model in `final/` and the baselines on validation and test data; writes
        `evaluation.json`, and what became of each held-out row."""
        directory, session = Path(figures["run_dir"]), self.session
        measured, pictures = {}, {}
        final, kind = open_model(figures["model_dir"]), self.evaluation
        opened = kind.open(final, session.processes.device, "fp32")
        score, seed = kind.baselines(self.data.train, session.console.say), self.config.seed
        for name, table in self.data.held_out.items():
            found, rows = measure_finished(kind, opened, table, score, seed, session.watch)
            measured[name] = found
            if name == "validation":
                held_out.write_held_out(directory, rows)
            if matrix := found.get("confusion_matrix"):
                picture = directory / f"confusion_matrix_{name}.png"
                title = f"{directory.name}, {name}"
                names, unit = confused_names(found), confused_unit(found)
                plots.draw_confusion_matrix(matrix, names, picture, title, unit)
                pictures[f"confusion_matrix_{name}"] = str(picture)
        atomic.replace_text(directory / outputs.MEASURED, json_text(measured, indent=1) + "\n")
        shown = {name: without_bulky(found) for name, found in measured.items()}
        held = shown.pop("validation", {})
        baseline = held.pop("baseline", {})
        self._warn({"validation": {**held, "baseline": baseline}, **shown})
        return {"validation": held, "baseline": baseline, **shown, "pictures": pictures}

    def _warn(self, measured: Mapping[str, Mapping[str, Any]]) -> None:
        advice = summary.PRETRAINED if self.from_scratch else summary.LONGER
        for name, figures in measured.items():
            if figures.get("examples"):
                for text in self.evaluation.judge(name, figures, advice):
                    self.session.console.warn(text)

    @classmethod
    def _keeps_head(cls, pretrained: Pretrained, made: PretrainedConfig) -> bool:
        return classifier.keeps_head(pretrained, made, cls.purpose)

    @classmethod
    def _shape(
        cls,
        config: Config,
        pretrained: Pretrained | None,
        data: D,
        tokenizer: PreTrainedTokenizerFast,
    ) -> tuple[PretrainedConfig, int]:
        """The model config with its head, and the maximum number of tokens of a text."""
        model, requested = config.model, config.data.max_length
        if pretrained is None:
            length = classifier.DEFAULT_MAX_LENGTH if requested == "auto" else requested
            settings = model.config
            if model.size is not None:
                kind, tokens = model.architecture, len(tokenizer)
                settings = settings_of_size(model.size, kind, settings, tokens, length, cls.purpose)
            shape = classifier.new_config(
                model.architecture, settings, tokenizer, length, cls.purpose
            )
        else:
            shape = classifier.existing_config(pretrained, model.config, cls.purpose)
        most = classifier.longest_text(shape, tokenizer, cls.purpose)
        if requested != "auto" and requested > most:
            raise ConfigError(
                f"data.max_length={requested} exceeds the model's maximum of {most} tokens",
                where="data.max_length",
                next=f"set data.max_length={most} or less",
            )
        tokenizers.check_fit(tokenizer, shape, config)
        cls.describe(data, shape, tokenizer)
        return shape, most if requested == "auto" else requested


def _trained_part(config: Config, keeps_head: bool) -> str:
    """The part of the model that is trained, for `defaults.finetuning`."""
    if config.model.name_or_path is None:
        return "new"
    if config.model.lora.r is not None:
        return "lora"
    if config.train.freeze == "body":
        return "head"
    return "again" if keeps_head else "all"


def column_names(named: Any) -> tuple[str | int, ...]:
    """The columns of a key, as a tuple."""
    return named if isinstance(named, tuple) else () if named is None else (named,)
