"""What one text may not write next, given what it has written: penalties, bans and constraints.

Each row is asked by itself and without padding, so its answer hangs on nothing else in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from llmkit.config.schema import GenerationConfig
from llmkit.inference.draws import RULED_OUT


class Constraint(Protocol):
    """A form that one text must have; it sees every token of it."""

    def allowed(self) -> Sequence[int] | Tensor:
        """The tokens that may come next: ids, or a mask over the vocabulary."""

    def take(self, token: int) -> None:
        """Moves on by a token that was allowed."""

    def complete(self) -> bool:
        """Whether nothing may follow any more."""


class CountPenalty(LogitsProcessor):  # type: ignore[misc]  # transformers comes without types
    """Takes `frequency` off a logit for each time that its token was generated, and `presence`
    once (the penalties of the OpenAI API)."""

    def __init__(self, frequency: float, presence: float, prompt_length: int) -> None:
        self.frequency, self.presence, self.prompt_length = frequency, presence, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores [rows, vocabulary] after the tokens of `input_ids` behind the prompt."""
        generated = input_ids[:, self.prompt_length :]
        counts = torch.zeros_like(scores)
        counts.scatter_add_(1, generated, torch.ones_like(generated, dtype=scores.dtype))
        return scores - self.frequency * counts - self.presence * (counts > 0)


def history_rules(
    settings: GenerationConfig,
    prompt_length: int,
    end_ids: Sequence[int],
    device: torch.device,
) -> LogitsProcessorList:
    """What hangs on the tokens of a row so far, in order: repetition penalty, frequency and
    presence penalty, n-grams, fewest new tokens."""
    rules = LogitsProcessorList()
    if settings.repetition_penalty != 1.0:
        rules.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.frequency_penalty or settings.presence_penalty:
        penalties = settings.frequency_penalty, settings.presence_penalty
        rules.append(CountPenalty(*penalties, prompt_length))
    if settings.no_repeat_ngram_size:
        rules.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
    if settings.min_new_tokens and end_ids:
        ends = torch.tensor(list(end_ids), device=device)
        fewest = settings.min_new_tokens
        rules.append(MinNewTokensLengthLogitsProcessor(prompt_length, fewest, ends))
    return rules


def end_ids(model_ends: int | Sequence[int] | None, tokenizer_end: int | None) -> tuple[int, ...]:
    """The ids that end a text: the model's own, and the tokenizer's."""
    own = [model_ends] if isinstance(model_ends, int) else list(model_ends or [])
    return tuple(dict.fromkeys([*own, *([] if tokenizer_end is None else [tokenizer_end])]))


def restrict(scores: Tensor, constraint: Constraint) -> Tensor:
    """The scores [1, vocabulary] with what the constraint does not allow ruled out."""
    allowed = constraint.allowed()
    kept = torch.full_like(scores, RULED_OUT)
    if isinstance(allowed, Tensor):
        wide = min(len(allowed), scores.shape[-1])
        places = allowed[:wide].nonzero().squeeze(-1).to(scores.device)
    else:
        places = torch.tensor(allowed, dtype=torch.long, device=scores.device)
    kept[:, places] = scores[:, places]
    return kept
