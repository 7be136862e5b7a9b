"""Which tokens of a text are scored, and the context of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit.config.schema import EvaluationConfig
from llmkit.data.text.token_file import Places, TokenFile
from llmkit.errors import ConfigError, DataError, UsageError
from llmkit.models import tokenizer as tokenizers
from llmkit.models.pretrained import Pretrained

LONGEST_WINDOW = 4096
"""Maximum number of tokens in a window by default."""

_UNLIMITED = 1024  # window of a model without a maximum context
_MIN_MASKED_WINDOW = 3
_MIN_IDS = 0.9  # share of a model's embeddings that another tokenizer must have ids for

_DOCUMENTS = {
    "packed": "each sees only itself; windows are cut from their concatenation, as in pretraining",
    "separate": "each sees only itself and starts a new window",
    "joined": "one long text, closing tokens included",
}


@dataclass(frozen=True)
class ScoringProtocol:
    """How a text is scored: a perplexity is meaningless without these settings."""

    window: int
    """Maximum number of tokens that the model sees at once."""
    stride: int
    """Tokens by which the window advances; below `window`, windows overlap."""
    documents: Literal["packed", "separate", "joined"]
    bos: Literal["document", "window"]
    """Whether the opening token is prepended to each document or to each window."""
    score_end: bool
    """Whether the end of each document is predicted and scored."""

    def described(self) -> dict[str, Any]:
        """The protocol as reported in a result."""
        scored = "every token of the text" + (
            " and the end of each document" if self.score_end else ""
        )
        return {
            **asdict(self),
            "documents": f"{self.documents}: {_DOCUMENTS[self.documents]}",
            "scored": f"{scored}, each once",
            "average": "sum of the negative log-likelihoods / number of scored tokens",
        }


def protocol(model: Pretrained, settings: EvaluationConfig) -> ScoringProtocol:
    """The resolved protocol; raises ConfigError if it does not fit the model."""
    context = model.context
    longest = min(context or _UNLIMITED, LONGEST_WINDOW)
    window = longest if settings.window == "auto" else settings.window
    if context is not None and window > context:
        raise ConfigError(
            f"a window of {window} tokens exceeds the {context}-token context of {model.name}",
            where="evaluation.window",
            next=f"write evaluation.window={context} or less",
        )
    if model.kind == "masked" and window < _MIN_MASKED_WINDOW:
        raise ConfigError(
            f"a window of {window} tokens has no room between the opening and the closing token",
            where="evaluation.window",
            next=f"write evaluation.window={_MIN_MASKED_WINDOW} or more",
        )
    fresh = window - (settings.bos == "window")
    stride = fresh if settings.stride == "auto" else settings.stride
    if stride > fresh:
        raise ConfigError(
            f"a stride of {stride} tokens would skip tokens: a window holds {fresh} of the text",
            where="evaluation.stride",
            next=f"write evaluation.stride={fresh} or less",
        )
    return ScoringProtocol(window, stride, settings.documents, settings.bos, settings.score_end)


def check_models(models: Sequence[Pretrained], settings: EvaluationConfig) -> None:
    """Checks that models can be evaluated, and compared with each other.

    Raises UsageError if there is no model, and ConfigError for a model that transformers cannot
    load, whose tokenizer belongs to another model, that is masked without a mask token, or that is
    of another kind than the first; and for settings that do not apply to its kind.
    """
    if not models:
        raise UsageError(
            "no model is named",
            where="model.name_or_path",
            next="--model NAME: a directory, a run directory or a hub name",
        )
    for model in models:
        model.check_purpose(model.purpose)
        _check_tokenizer(model)
    _check_kinds(models, settings)


def _check_tokenizer(model: Pretrained) -> None:
    known = tokenizers.max_id(model.unchecked_tokenizer) + 1
    minimum = _MIN_IDS * model.vocab_size
    if model.named_tokenizer is not None and not minimum <= known <= model.vocab_size:
        raise ConfigError(
            f"the tokenizer {model.named_tokenizer} has {known} ids, the model {model.name} has "
            f"{model.vocab_size} embeddings: they do not belong together",
            where="tokenizer.name_or_path",
            next="remove tokenizer.name_or_path to use the model's own tokenizer",
        )
    if model.kind == "masked":
        model.check_mask_token()


def _check_kinds(models: Sequence[Pretrained], settings: EvaluationConfig) -> None:
    first = models[0]
    for model in models:
        if model.kind != first.kind:
            raise ConfigError(
                f"{first.name} is a {first.kind} model and {model.name} a {model.kind} one: "
                "their metrics are not comparable",
                where="evaluation.compare_with",
                next="compare models of one kind: causal, masked, or classifiers",
            )
    if settings.per_token is not None and (len(models) > 1 or first.kind == "classifier"):
        raise ConfigError(
            "a page of shaded tokens is for one language model",
            where="evaluation.per_token",
            next="name one causal or masked model, or remove evaluation.per_token",
        )


def check_tokens(model: Pretrained, tokens: TokenFile) -> None:
    """Raises DataError for a text with ids that the model has no embedding for."""
    largest = max(tokens.max_id, tokens.opening, tokens.closing)
    if largest >= model.vocab_size:
        raise DataError(
            f"the tokenizer gives id {largest}, the model has {model.vocab_size} embeddings",
            where=f"model {model.name}, tokenizer {model.tokenizer.name_or_path}",
            next="use the model's own tokenizer: remove tokenizer.name_or_path",
        )


class Spans(NamedTuple):
    """Windows: the model reads ids[start:stop], and its predictions from `first` on are scored."""

    start: Places
    first: Places
    stop: Places
    opened: NDArray[np.bool_]
    """Whether the window begins with the opening token of its text."""


@dataclass(frozen=True)
class Windows:
    """The windows over a token stream, numbered in its order: a pure function of their number.

    Window j of a text begins j strides after its start and scores the tokens that no earlier window
    has scored: every token but the first is scored exactly once, with at least window - stride
    tokens of context where the text has them.
    """

    tokens: TokenFile
    protocol: ScoringProtocol
    origins: Places | None = None
    """Places where the grid of windows restarts, the first of them 0; by default only 0."""

    def __len__(self) -> int:
        return int(self._ends[-1])

    def spans(self, numbers: Sequence[int] | Places) -> Spans:
        """The windows of these numbers."""
        numbers = np.asarray(numbers, dtype=np.int64)
        text = np.searchsorted(self._ends, numbers, side="right")
        begins, ends = self._texts
        first_of_text = self._first_window[text]
        before = np.where(text > 0, self._ends[text - 1], 0)
        step = first_of_text + numbers - before
        origin = self._origins[text]
        stride, length = self.protocol.stride, self._length
        reached = np.where(step == 0, 0, (step - 1) * stride + length)
        start = np.maximum(origin + step * stride, begins[text])
        return Spans(
            start=start,
            first=np.maximum(origin + reached, begins[text]),
            stop=np.minimum(origin + step * stride + length, ends[text]),
            opened=start == begins[text],
        )

    def scored(self, places: Places) -> NDArray[np.bool_]:
        """Which of the places predict a token that counts."""
        if self.protocol.score_end:
            return np.ones(places.shape, dtype=np.bool_)
        starts, last = self.tokens.starts, len(self.tokens.ids) - 1
        target = places + 1
        framing = (target == last) | _contains(starts, target)
        if self._two_ids:
            framing |= _contains(starts, target + 1)
        return np.asarray(~framing, dtype=np.bool_)

    @property
    def _two_ids(self) -> bool:
        """Whether the opening token differs from the closing one; it is then never scored."""
        return self.tokens.opening != self.tokens.closing

    @property
    def _length(self) -> int:
        """Tokens of the stream in a window."""
        return self.protocol.window - (self.protocol.bos == "window")

    @cached_property
    def _texts(self) -> tuple[Places, Places]:
        """The first place of each separately scored text, and one past its last."""
        end = len(self.tokens.ids) - 1
        if self.protocol.documents == "joined":
            return np.zeros(1, np.int64), np.array([end])
        begins = self.tokens.starts
        return begins, np.append(begins[1:] - self._two_ids, end)

    @cached_property
    def _origins(self) -> Places:
        """[texts], the place where the grid of windows of each text starts."""
        begins = self._texts[0]
        if self.protocol.documents == "separate":
            return begins
        if self.origins is None:
            return np.zeros_like(begins)
        found = np.searchsorted(self.origins, begins, side="right") - 1
        return np.asarray(self.origins[found])

    def _step(self, places: Places) -> Places:
        """The number, in the grid of its text, of the window that scores each place."""
        places = places - self._origins
        return -(-np.maximum(places - self._length + 1, 0) // self.protocol.stride)

    @cached_property
    def _first_window(self) -> Places:
        return self._step(self._texts[0])

    @cached_property
    def _ends(self) -> Places:
        """The number of windows up to the end of each text."""
        return np.cumsum(self._step(self._texts[1] - 1) - self._first_window + 1)


def _contains(ordered: Places, values: Places) -> NDArray[np.bool_]:
    found = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[found] == values)
