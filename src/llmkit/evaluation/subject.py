"""A model that is to be measured: what it is, and what does not fit, before weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from llmkit.config.schema import Config, EvaluationConfig
from llmkit.data.tokens import TokenFile
from llmkit.errors import ConfigError, DataError, UsageError
from llmkit.evaluation.windows import ScoringProtocol
from llmkit.models import build, load, location, pairing
from llmkit.models import tokenizer as tokenizers
from llmkit.models.build import Purpose

LONGEST_WINDOW = 4096
"""Tokens of the longest window that is chosen when none is asked for."""

_UNLIMITED = 1024  # window of a model without a longest context
_FEWEST_MASKED = 3
_FEWEST_KNOWN = 0.9  # share of a model's embeddings that another tokenizer must have ids for

Kind = Literal["causal", "masked", "classifier"]

_PURPOSES: dict[Kind, Purpose] = {
    "causal": build.LANGUAGE_MODEL,
    "masked": build.MASKED_MODEL,
    "classifier": build.CLASSIFIER,
}


@dataclass(frozen=True)
class Subject:
    """A model by its config and its tokenizer."""

    name: str
    revision: str | None
    kind: Kind
    shape: PretrainedConfig
    tokenizer: PreTrainedTokenizerFast

    @property
    def vocab_size(self) -> int:
        """Ids that the model has embeddings for."""
        return int(self.shape.get_text_config().vocab_size)

    @property
    def context(self) -> int | None:
        """Most tokens that the model can see at once; None without a limit."""
        positions = getattr(self.shape.get_text_config(), "max_position_embeddings", None)
        if positions is None:
            return None
        # RoBERTa's positions begin after its padding id; its tokenizer knows.
        limit = self.tokenizer.model_max_length if self.kind == "masked" else positions
        return int(min(positions, limit))


def subjects(config: Config) -> Iterator[Subject]:
    """The models of a config, the one that is compared first.

    Raises UsageError where none is named, ConfigError where one cannot be measured, and what
    loading raises.
    """
    first = config.model.name_or_path
    if first is None:
        raise UsageError(
            "there is no model",
            where="model.name_or_path",
            next="--model NAME: a directory, a run directory or a hub name",
        )
    revisions = [config.model.revision, *(None for _ in config.evaluation.compare_with)]
    for name, revision in zip((first, *config.evaluation.compare_with), revisions, strict=True):
        shape = load.load_config(name, revision)
        yield _subject(config, name, revision, shape)


def protocol(subject: Subject, settings: EvaluationConfig) -> ScoringProtocol:
    """The protocol with nothing left open; raises ConfigError where it does not fit the model."""
    context = subject.context
    longest = min(context or _UNLIMITED, LONGEST_WINDOW)
    window = longest if settings.window == "auto" else settings.window
    if context is not None and window > context:
        raise ConfigError(
            f"a window of {window} tokens is longer than the {context} that {subject.name} can see",
            where="evaluation.window",
            next=f"write evaluation.window={context} or less",
        )
    if subject.kind == "masked" and window < _FEWEST_MASKED:
        raise ConfigError(
            f"a window of {window} tokens has no room between the two that frame a text",
            where="evaluation.window",
            next=f"write evaluation.window={_FEWEST_MASKED} or more",
        )
    fresh = window - (settings.bos == "window")
    stride = fresh if settings.stride == "auto" else settings.stride
    if stride > fresh:
        raise ConfigError(
            f"a stride of {stride} tokens leaves tokens out: a window holds {fresh} of the text",
            where="evaluation.stride",
            next=f"write evaluation.stride={fresh} or less",
        )
    return ScoringProtocol(window, stride, settings.documents, settings.bos, settings.score_end)


def check_kinds(models: Sequence[Subject], settings: EvaluationConfig) -> None:
    """Raises ConfigError for models that are not of one kind, and for what their kind has not."""
    first = models[0]
    for model in models:
        if model.kind != first.kind:
            raise ConfigError(
                f"{first.name} is a {first.kind} model and {model.name} a {model.kind} one: "
                "no figure means the same for both",
                where="evaluation.compare_with",
                next="compare causal models, masked models or classifiers with their like",
            )
    if settings.per_token is not None and (len(models) > 1 or first.kind == "classifier"):
        raise ConfigError(
            "a page of shaded tokens shows one language model",
            where="evaluation.per_token",
            next="name one causal or masked model, or leave evaluation.per_token out",
        )


def check_tokens(subject: Subject, tokens: TokenFile) -> None:
    """Raises DataError for a text with ids that the model has no embedding for."""
    largest = max(tokens.max_id, tokens.opening, tokens.closing)
    if largest >= subject.vocab_size:
        raise DataError(
            f"the tokenizer gives id {largest}, the model has {subject.vocab_size} embeddings",
            where=f"model {subject.name}, tokenizer {subject.tokenizer.name_or_path}",
            next="use the tokenizer that belongs to the model: leave tokenizer.name_or_path out",
        )


def _subject(config: Config, name: str, revision: str | None, shape: PretrainedConfig) -> Subject:
    kind = _kind(shape)
    load.config_for(_PURPOSES[kind], name, revision)
    other = config.tokenizer.name_or_path
    if other is not None:
        tokenizer = tokenizers.load(other)
    else:
        tokenizer = tokenizers.load(location.locate(name), revision)
    subject = Subject(name, revision, kind, shape, tokenizer)
    if other is not None:
        _check_other_tokenizer(subject, other)
        pairing.check_belongs(tokenizer, other, name, revision)
    if kind == "masked":
        _prepare_masked(subject)
    return subject


def _kind(shape: PretrainedConfig) -> Kind:
    """What a model is for, by the class that its weights were saved from."""
    architecture = (shape.architectures or [""])[0]
    if "SequenceClassification" in architecture:
        return "classifier"
    return "masked" if architecture.endswith(("MaskedLM", "PreTraining")) else "causal"


def _check_other_tokenizer(subject: Subject, name: str) -> None:
    known = tokenizers.max_id(subject.tokenizer) + 1
    if not _FEWEST_KNOWN * subject.vocab_size <= known <= subject.vocab_size:
        raise ConfigError(
            f"the tokenizer {name} has {known} ids, the model {subject.name} has "
            f"{subject.vocab_size} embeddings: they do not belong together",
            where="tokenizer.name_or_path",
            next="leave tokenizer.name_or_path out: the model's own tokenizer is used",
        )


def _prepare_masked(subject: Subject) -> None:
    tokenizer = subject.tokenizer
    if tokenizer.mask_token_id is None:
        raise ConfigError(
            f"the tokenizer of {subject.name} has no mask token",
            where="tokenizer.name_or_path",
            next="use the tokenizer that the model was trained with",
        )
    tokenizers.set_frame(tokenizer)
