"""Sampling, from logits to a token: rules, constraints, the shape of the distribution, the draw.

The rules of a sequence see its own tokens without padding, so the rest of the batch has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from llmkit.config.schema import GenerationConfig
from llmkit.inference import constraints
from llmkit.inference.constraints import Constraint

EXCLUDED = float("-inf")
"""Logit of a token that cannot be chosen."""


class Sampler:
    """The sampling settings of a sequence, prepared for a model and its tokenizer; `schema` is a
    JSON schema that the text satisfies, besides that of the settings.

    Raises the errors of `constraints.constrain`.
    """

    def __init__(
        self,
        settings: GenerationConfig,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: Sequence[int],
        device: torch.device,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings, self.tokenizer, self.schema = settings, tokenizer, schema
        self.end_ids, self.device = tuple(end_ids), device
        self.constrain = constraints.constrain(settings, tokenizer, end_ids, schema)
        self.warpers = _warpers(settings)
        s = settings
        shape = (s.temperature, s.top_k, s.top_p, s.min_p, s.typical_p)
        self.distribution: tuple[float, ...] = shape if s.do_sample else ()
        """The settings of the distribution: sequences that share them are sampled together."""

    def history_rules(self, prompt_length: int) -> LogitsProcessorList:
        """The rules that depend on a sequence's tokens so far, in order: repetition penalty,
        frequency and presence penalty, n-grams, minimum number of new tokens."""
        settings, rules = self.settings, LogitsProcessorList()
        if settings.repetition_penalty != 1.0:
            rules.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        if settings.frequency_penalty or settings.presence_penalty:
            penalties = settings.frequency_penalty, settings.presence_penalty
            rules.append(CountPenalty(*penalties, prompt_length))
        if settings.no_repeat_ngram_size:
            rules.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
        if settings.min_new_tokens and self.end_ids:
            ends = torch.tensor(self.end_ids, device=self.device)
            minimum = settings.min_new_tokens
            rules.append(MinNewTokensLengthLogitsProcessor(prompt_length, minimum, ends))
        return rules


class CountPenalty(LogitsProcessor):  # type: ignore[misc]  # transformers comes without types
    """Subtracts `frequency` from a token's logit for each time it was generated, and `presence`
    once (the penalties of the OpenAI API)."""

    def __init__(self, frequency: float, presence: float, prompt_length: int) -> None:
        self.frequency, self.presence, self.prompt_length = frequency, presence, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores [rows, vocabulary], given the tokens of `input_ids` after the prompt."""
        generated = input_ids[:, self.prompt_length :]
        counts = torch.zeros_like(scores)
        counts.scatter_add_(1, generated, torch.ones_like(generated, dtype=scores.dtype))
        return scores - self.frequency * counts - self.presence * (counts > 0)


def restrict(scores: Tensor, constraint: Constraint) -> Tensor:
    """The scores [1, vocabulary], excluding tokens that the constraint does not allow."""
    allowed = constraint.allowed()
    kept = torch.full_like(scores, EXCLUDED)
    if isinstance(allowed, Tensor):
        wide = min(len(allowed), scores.shape[-1])
        places = allowed[:wide].nonzero().squeeze(-1).to(scores.device)
    else:
        places = torch.tensor(allowed, dtype=torch.long, device=scores.device)
    kept[:, places] = scores[:, places]
    return kept


def draw(scores: Tensor, uniforms: Tensor) -> Tensor:
    """One token for each row of `scores` [rows, vocabulary]: where the row's number from [0, 1)
    falls in its cumulative probability.

    In float64: in float32 the sum over a large vocabulary loses the rarest tokens. A token of
    probability zero is never drawn.
    """
    possible = (scores > EXCLUDED).any(0).nonzero().squeeze(-1)  # few after top-k
    cumulative = scores[:, possible].double().softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    # Rounding may raise the product to the total, beyond the last token.
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, -total))
    return possible[torch.searchsorted(cumulative, target, right=True).squeeze(-1)]


def end_ids(model_ends: int | Sequence[int] | None, tokenizer_end: int | None) -> tuple[int, ...]:
    """The ids that end a text: those of the model and the tokenizer's."""
    own = [model_ends] if isinstance(model_ends, int) else list(model_ends or [])
    return tuple(dict.fromkeys([*own, *([] if tokenizer_end is None else [tokenizer_end])]))


def _warpers(settings: GenerationConfig) -> LogitsProcessorList:
    """The processors that shape the distribution, in transformers' order: temperature, top-k,
    top-p, min-p, typical-p."""
    shaping = LogitsProcessorList()
    if not settings.do_sample:
        return shaping
    if settings.temperature != 1.0:
        shaping.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        shaping.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        shaping.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        shaping.append(MinPLogitsWarper(settings.min_p))
    if settings.typical_p < 1.0:
        shaping.append(TypicalLogitsWarper(settings.typical_p))
    return shaping
