"""Models with a head that labels texts or tokens: from an encoder, from a decoder, or new."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmkit.errors import ConfigError, DataError
from llmkit.models import build
from llmkit.models.build import Purpose
from llmkit.models.pretrained import Pretrained, load_model

DEFAULT_MAX_LENGTH = 512
"""Maximum number of tokens of a text if neither model nor tokenizer sets a limit."""

MARK = "llmkit"
"""The entry of the config.json of a classifier or tagger that records what it was trained on."""


class Reporter(Protocol):
    """Receives messages about a model's head, as `llmkit.reporting.console.Console` does."""

    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


@dataclass(frozen=True)
class ClassifierHead:
    """The outputs of a classifier or tagger: a value for each of these names."""

    problem_type: str
    """transformers' name for it; empty for a tagger, which has none."""
    names: tuple[str, ...]

    def describe(self, config: PretrainedConfig, pad_token_id: int) -> PretrainedConfig:
        """Adds this head to a config, for texts that are padded with this id; returns the
        config."""
        config.problem_type = self.problem_type or None
        config.id2label = dict(enumerate(self.names))
        config.label2id = {name: number for number, name in enumerate(self.names)}
        # A decoder uses these to find the last token that is not padding.
        config.pad_token_id = config.get_text_config().pad_token_id = pad_token_id
        if hasattr(config, "use_cache"):  # a key that the config lacks is lost when it is loaded
            config.use_cache = False
        return config


def head_of(config: PretrainedConfig) -> ClassifierHead:
    """The head that the config of a classifier or tagger describes."""
    names = tuple(config.id2label[number] for number in sorted(config.id2label))
    if is_tagger(config):
        return ClassifierHead("", names)
    return ClassifierHead(config.problem_type or "single_label_classification", names)


def is_classifier(config: PretrainedConfig) -> bool:
    """Whether a config belongs to a trained classifier."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def is_tagger(config: PretrainedConfig) -> bool:
    """Whether a config belongs to a trained tagger."""
    return any(name.endswith("ForTokenClassification") for name in config.architectures or ())


def is_answerer(config: PretrainedConfig) -> bool:
    """Whether a config belongs to a trained model that answers questions by a span."""
    return any(name.endswith("ForQuestionAnswering") for name in config.architectures or ())


def sees_only_before(config: PretrainedConfig) -> bool:
    """Whether a token of such a model sees only those before it."""
    kind = config.model_type
    both = kind in build.known_architectures(build.MASKED_MODEL)
    causal = kind in build.known_architectures(build.LANGUAGE_MODEL)
    decides = getattr(config, "is_causal", None) or getattr(config, "is_decoder", None)
    return causal and (not both or bool(decides))


def set_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    """Uses an existing token as padding if the tokenizer has none; embeddings do not change.

    Any token will do: attention skips padding, and a decoder reads the last token that is not
    padding. Raises DataError for a tokenizer without any special token.
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is not None:
        return
    token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if token is None:
        raise DataError(
            "the tokenizer has no token that could serve as padding",
            where="tokenizer.name_or_path",
            next="set pad_token in its tokenizer_config.json to a token that it has",
        )
    tokenizer.pad_token = token


def separate_pairs(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """Adds a separator between the two texts of a pair if the tokenizer joins them without one, as
    GPT-2's does; returns the separator, or None if none was added."""
    alone = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "b")]
    first, both = alone[0], alone[0] + alone[1]
    framed, pair = tokenizer("a")["input_ids"], tokenizer("a", "b")["input_ids"]
    token: str | None = tokenizer.sep_token or tokenizer.eos_token
    if token is None or _place(both, pair) is None or (place := _place(first, framed)) is None:
        return None
    names = tokenizer.convert_ids_to_tokens(framed)
    before, after = names[:place], names[place + len(first) :]
    special = {name: tokenizer.convert_tokens_to_ids(name) for name in (*before, *after, token)}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", token, "$B", *after],
        special_tokens=list(special.items()),
    )
    return token


def _place(part: list[int], whole: list[int]) -> int | None:
    """The first index of a sequence of ids within another; None if it does not occur."""
    places = range(len(whole) - len(part) + 1)
    return next((n for n in places if whole[n : n + len(part)] == part), None)


def existing_config(
    pretrained: Pretrained, settings: dict[str, Any], purpose: Purpose = build.CLASSIFIER_MODEL
) -> PretrainedConfig:
    """A copy of the config of a pretrained model, with the dropout of `settings`.

    Raises ConfigError for settings that would change the meaning of the weights.
    """
    pretrained.check_purpose(purpose)
    config = copy.deepcopy(pretrained.config)
    for name, value in settings.items():
        if "drop" not in name or not hasattr(config, name):
            known = [n for n in config.to_dict() if "drop" in n]
            raise ConfigError(
                "only the dropout of a pretrained model can be set",
                where=f"model.config.{name}",
                next=f"write one of {', '.join(known) or 'none: it has no dropout'}, or remove "
                "model.name_or_path for a new model",
            )
        if reason := build.type_refusal(type(config), name, value):
            value = build.with_floats(type(config), {name: value})[name]
            if isinstance(value, float):
                reason = ""
        if reason:
            raise ConfigError(reason, where=f"model.config.{name}", next="write a number")
        setattr(config, name, value)
    return config


def new_config(
    architecture: str,
    settings: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    purpose: Purpose = build.CLASSIFIER_MODEL,
) -> PretrainedConfig:
    """The config of a new model for texts of up to `length` tokens; a tagger sees both sides."""
    names = ("pad", "cls", "sep", "bos", "eos")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    special = {name: number for name, number in ids.items() if number is not None}
    size = len(tokenizer)
    if purpose is build.TAGGER_MODEL and "is_causal" in build.setting_names(
        CONFIG_MAPPING[architecture]
    ):
        settings = {"is_causal": False, **settings}
    return build.model_config(architecture, settings, size, length, special, purpose)


def longest_text(
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    purpose: Purpose = build.CLASSIFIER_MODEL,
) -> int:
    """Maximum number of tokens of a text that both model and tokenizer support."""
    positions = getattr(config, "max_position_embeddings", None) or 0
    limits = [
        tokenizer.model_max_length,
        positions - build.unused_positions(config, purpose),
    ]
    return min((limit for limit in limits if 0 < limit < 1_000_000), default=DEFAULT_MAX_LENGTH)


def load_body(
    pretrained: Pretrained,
    config: PretrainedConfig,
    seed: int,
    reporter: Reporter | None = None,
    purpose: Purpose = build.CLASSIFIER_MODEL,
) -> PreTrainedModel:
    """A pretrained model with the head that `config` describes, in fp32.

    A head for the same labels is kept; any other is new, the same for the same seed, and reported
    to `reporter`. Raises DataError if weights below the head are missing.
    """
    with torch.device("meta"):
        new = set(head_weights(purpose.auto.from_config(config)))
    torch.manual_seed(seed)
    model = load_model(
        pretrained,
        purpose,
        new.__contains__,
        reporter.say if reporter else lambda text: None,
        config=config,
        ignore_mismatched_sizes=True,
    )
    before = pretrained.config
    other = before.architectures[0] if _has_task_head(before) else None
    if other and not keeps_head(pretrained, config, purpose):
        _renew_head(model, seed)
        if reporter:
            reporter.warn(f"the head of the {other} is replaced by a new one: its labels differ")
    return model


def keeps_head(
    pretrained: Pretrained, config: PretrainedConfig, purpose: Purpose = build.CLASSIFIER_MODEL
) -> bool:
    """Whether `load_body` keeps the model's head, because it has the labels of `config`."""
    before = pretrained.config
    if purpose is build.ANSWER_MODEL:
        return is_answerer(before)
    is_alike = is_tagger if purpose is build.TAGGER_MODEL else is_classifier
    return is_alike(before) and head_of(before) == head_of(config)


def head_weights(model: PreTrainedModel) -> Iterator[str]:
    """Yields the names of the weights above the body, and of its pooler, which language models
    lack."""
    for name, _ in model.named_parameters():
        if not _in_body(model, name) or "pooler" in name.split("."):
            yield name


def freeze(model: PreTrainedModel, part: str) -> None:
    """Freezes a part of the model: `none`, the `embeddings`, or the `body`."""
    head = set(head_weights(model))
    embeddings = {
        id(weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for weight in module.parameters()
    }
    for name, weight in model.named_parameters():
        kept = {"body": name not in head, "embeddings": id(weight) in embeddings}
        if kept.get(part, False):
            weight.requires_grad_(False)


def remember_columns(
    config: PretrainedConfig,
    text: Sequence[str | int],
    label: Sequence[str | int] = (),
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Records in the config the columns of texts and labels, and other facts, as JSON."""
    setattr(config, MARK, {"text_column": list(text), "label_column": list(label), **facts})


def remembered(config: PretrainedConfig, fact: str) -> Any:
    """A fact that `remember_columns` recorded; None if there is none."""
    noted = getattr(config, MARK, None)
    return noted.get(fact) if isinstance(noted, dict) else None


def remembered_columns(config: PretrainedConfig, key: str = "text_column") -> tuple[str | int, ...]:
    """The columns of `text_column` or `label_column` that the classifier was trained on, if they
    were recorded."""
    columns = remembered(config, key)
    return tuple(columns) if isinstance(columns, list) else ()


class NumberHead(nn.Linear):
    """The last linear layer of a regression, which predicts in the unit of the labels.

    It computes in fp32 regardless of autocast: in bf16, a large mean of the labels would leave no
    digits for the differences between them.

    A model learns numbers around 0 with a standard deviation of 1; labels may be prices or years.
    The head is therefore initialised to the mean and standard deviation of the labels, and its
    learning rate, weight decay and loss are scaled by that deviation: this equals training on
    standardised labels, and the saved weights predict plain numbers.
    """

    unit: float = 1.0
    """Standard deviation of the labels that it is trained on; 1 for a trained one."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., hidden] -> [..., 1] in the unit of the labels."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def to_number_head(model: PreTrainedModel) -> NumberHead:
    """Converts the last linear layer of a regression to a NumberHead in place, and returns it."""
    [*_, last] = _linears(model)
    last.__class__ = NumberHead
    assert isinstance(last, NumberHead)
    return last


def fit_number_head(model: PreTrainedModel, labels: NDArray[Any], is_new: bool) -> None:
    """Scales the last layer by the standard deviation of the labels [rows]; a new one starts at
    their mean.

    A layer without bias (decoders have none) cannot represent the mean: its unit is the root mean
    square of the labels.
    """
    last = to_number_head(model)
    mean = float(labels.mean(dtype=np.float64)) if last.bias is not None else 0.0
    unit = float(np.sqrt(np.square(labels.astype(np.float64) - mean).mean())) or 1.0
    last.unit = unit
    if is_new:
        with torch.no_grad():
            last.weight.mul_(unit)
            if last.bias is not None:
                last.bias.mul_(unit).add_(mean)


def head_unit(model: nn.Module) -> float:
    """The unit in which the head of a regression predicts; 1 for any other model."""
    return next((module.unit for _, module in _number_heads(model)), 1.0)


def head_units(model: nn.Module) -> dict[str, float]:
    """The unit of each weight of the head, by its name; empty for any other model."""
    return {
        f"{name}.{leaf}": module.unit
        for name, module in _number_heads(model)
        for leaf, _ in module.named_parameters()
    }


def _has_task_head(config: PretrainedConfig) -> bool:
    """Whether a model was saved with a task head, not a language modelling head."""
    name = (config.architectures or [""])[0]
    return "For" in name and not name.endswith(("LM", "ForPreTraining", "Generation"))


def _renew_head(model: PreTrainedModel, seed: int) -> None:
    """Reinitialises the weights of the head, as in a new model."""
    torch.manual_seed(seed)
    for name, module in model.named_modules():
        weights = list(module.parameters(recurse=False))
        if weights and not _in_body(model, f"{name}."):
            for weight in weights:
                # transformers does not initialise weights that have this mark of a loaded weight.
                weight._is_hf_initialized = False
            model._init_weights(module)


def _in_body(model: PreTrainedModel, name: str) -> bool:
    return name.startswith(model.base_model_prefix + ".")


def _number_heads(model: nn.Module) -> Iterator[tuple[str, NumberHead]]:
    for name, module in model.named_modules():
        if isinstance(module, NumberHead):
            yield name, module


def _linears(model: PreTrainedModel) -> Iterator[nn.Linear]:
    """The linear layers above the body with one output per label; our models have one such
    layer."""
    for name, module in model.named_modules():
        above = not name.startswith(f"{model.base_model_prefix}.")
        count = model.config.num_labels
        if above and isinstance(module, nn.Linear) and module.out_features == count:
            yield module
