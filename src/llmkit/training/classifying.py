"""What a classifier is trained on, and what it begins as: checked before weights are touched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.schema import Config
from llmkit.data import dataset
from llmkit.data.dataset import Labelled
from llmkit.data.examples import Encoded
from llmkit.data.labels import REGRESSION, SINGLE
from llmkit.data.sources import Sources
from llmkit.errors import ConfigError
from llmkit.models import build, classifier, load, lora, pretrained, tokenizer_saving
from llmkit.models import tokenizer as tokenizers
from llmkit.models.classifier import Head
from llmkit.models.control_tokens import control_tokens
from llmkit.models.pretrained import open_model
from llmkit.progress import Watch
from llmkit.reporting.console import Console
from llmkit.training.checkpoint import Checkpoint

ARCHITECTURE = "modernbert"
"""What a new classifier is: of the encoders it learns fastest from random weights."""


@dataclass(frozen=True)
class Inputs:
    """All that a run needs but weights, checked."""

    config: Config
    """With the columns, the length and the architecture spelled out."""
    data: Labelled
    tokenizer: PreTrainedTokenizerFast
    shape: PretrainedConfig
    encoded: dict[str, Encoded]
    """`train`, `validation` and `test`, as far as there are any."""

    @property
    def content(self) -> dict[str, str]:
        """Content hashes by what they are of."""
        tables = {"training data": self.data.train, "validation data": self.data.validation}
        found = {name: table.fingerprint for name, table in tables.items() if table is not None}
        ids = hashlib.sha256(self.encoded["train"].ids.tobytes()).hexdigest()
        return {**found, "tokens of the training data": ids}


def gather(config: Config, sources: Sources, console: Console, watch: Watch) -> Inputs:
    """The data, the tokenizer and the shape of the model: all that can be wrong before weights are
    made or loaded."""
    config = _with_architecture(config)
    opened = pretrained.of_config(config)
    given = opened.tokenizer if opened else tokenizers.named(config)
    model = config.model
    if opened is not None:
        classifier.existing_config(opened, model.config)
    else:
        build.fill_shape(model.architecture, model.config, build.CLASSIFIER)
    data = dataset.load_labelled(config, sources, watch, console.say, console.warn, given)
    _check_kind(config, data)
    tokenizer = given or _trained_tokenizer(config, data, console)
    classifier.set_padding(tokenizer)
    shape, length = _shape(config, data, tokenizer)
    tokenizer.model_max_length = length
    tokenizers.read_as_text(tokenizer)  # as it is done here
    is_new_pair = len(data.train.texts[0]) > 1 and not _keeps_head(config, shape)
    if is_new_pair and (between := classifier.separate_pairs(tokenizer)):
        console.say(f"pairs: {between} stands between the two texts, which the tokenizer joins")
    tokenizer = tokenizer_saving.kept(tokenizer, shape)
    tables = [table for table in (data.train, data.validation, data.test) if table is not None]
    rows = (texts for table in tables for texts in table.texts)
    if found := control_tokens(tokenizer).warning(rows, "row"):
        console.warn(found)
    encoded = _encoded(data, tokenizer, length, watch)
    data.report["lengths"] = {name: each.length_report() for name, each in encoded.items()}
    columns = data.data.model_copy(update={"max_length": length, "problem_type": data.labels.kind})
    settled = config.model_copy(update={"data": columns})
    return Inputs(settled, data, tokenizer, shape, encoded)


def _keeps_head(config: Config, shape: PretrainedConfig) -> bool:
    name, revision = config.model.name_or_path, config.model.revision
    return name is not None and classifier.keeps_head(open_model(name, revision), shape)


def begin(inputs: Inputs, resumed: Checkpoint | None, console: Console) -> PreTrainedModel:
    """The model with the weights that the run starts or resumes with."""
    config, shape = inputs.config, inputs.shape
    name, revision = config.model.name_or_path, config.model.revision
    with_lora = config.model.lora.r is not None
    if resumed is not None and not with_lora:
        model = load.load_model(open_model(str(resumed.directory)), build.CLASSIFIER)
    elif name is not None:
        model = classifier.load_body(open_model(name, revision), shape, config.seed, console)
    else:
        model = build.classifier(shape, config.seed)
    if inputs.data.labels.kind == REGRESSION:
        is_new = (resumed is None or with_lora) and not _keeps_head(config, shape)
        classifier.fit_number_head(model, inputs.data.train.targets, is_new)
    classifier.freeze(model, config.train.freeze)
    if with_lora:
        lora.attach(model, config.model.lora, config.seed, set(classifier.head_weights(model)))
        if resumed is not None:
            lora.restore(model, resumed.directory)
    return model


def _check_kind(config: Config, data: Labelled) -> None:
    """Refuses settings of classes for a regression."""
    train = config.train
    for key, default in (("class_weights", "none"), ("label_smoothing_factor", 0.0)):
        if data.labels.kind == REGRESSION and getattr(train, key) != default:
            raise ConfigError(
                "a regression has no classes",
                where=f"train.{key}",
                next=f"leave it out, or write data.problem_type={SINGLE}",
            )


def _with_architecture(config: Config) -> Config:
    model = config.model
    if model.name_or_path is not None or model.architecture != "auto":
        return config
    chosen = model.model_copy(update={"architecture": ARCHITECTURE})
    return config.model_copy(update={"model": chosen})


def _trained_tokenizer(config: Config, data: Labelled, console: Console) -> PreTrainedTokenizerFast:
    texts = [text for texts in data.train.texts for text in texts]
    size = config.tokenizer.vocab_size
    if size == "auto":
        size = tokenizers.auto_vocab_size(sum(len(text.encode()) for text in texts))
    made = tokenizers.train_bpe_with_frame(texts, size, config.model.architecture)
    console.say(f"tokenizer: {len(made):,} tokens, byte-level BPE trained on the training texts")
    return made


def _shape(
    config: Config, data: Labelled, tokenizer: PreTrainedTokenizerFast
) -> tuple[PretrainedConfig, int]:
    """The config of the model with its head, and the tokens to which texts are cut."""
    model, wish = config.model, config.data.max_length
    if model.name_or_path is None:
        length = classifier.LENGTH if wish == "auto" else wish
        shape = classifier.new_config(model.architecture, model.config, tokenizer, length)
    else:
        opened = open_model(model.name_or_path, model.revision)
        shape = classifier.existing_config(opened, model.config)
    most = classifier.longest_text(shape, tokenizer)
    if wish != "auto" and wish > most:
        raise ConfigError(
            f"texts of {wish} tokens are longer than the model's {most}",
            where="data.max_length",
            next=f"write data.max_length={most} or less",
        )
    tokenizers.check_fit(tokenizer, shape, config)
    head = Head(data.labels.kind, data.labels.names)
    head.describe(shape, tokenizer.pad_token_id)
    text, label = data.data.text_column, data.data.label_column
    classifier.remember(shape, _columns(text), _columns(label))
    return shape, most if wish == "auto" else wish


def _columns(named: Any) -> tuple[str | int, ...]:
    return named if isinstance(named, tuple) else () if named is None else (named,)


def _encoded(
    data: Labelled, tokenizer: PreTrainedTokenizerFast, length: int, watch: Watch
) -> dict[str, Encoded]:
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    tables = {name: table for name, table in parts.items() if table is not None}
    with watch("tokenizing", sum(map(len, tables.values()))) as advance:
        return {name: table.examples(tokenizer, length, advance) for name, table in tables.items()}
