"""A generated text with its tokens, its log-probability, and the reason it ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmkit.inference.prompts import Prompt

FinishReason = Literal["eos", "stop", "length", "context", "nothing_allowed"]
"""An end token; a stop string or a completed choice; `max_new_tokens`; the model's positions; or
settings that left no token to take."""

DECIMALS = 3
"""Decimals of log-probabilities; further digits are rounding noise."""


@dataclass(frozen=True)
class Candidate:
    """A candidate token at a step."""

    id: int
    token: str
    logprob: float
    """The model's own log-probability, in nats."""
    after_settings: float
    """The probability it was sampled with: after penalties, bans, temperature and truncation."""

    @property
    def probability(self) -> float:
        """The model's own probability."""
        return math.exp(self.logprob)


@dataclass(frozen=True)
class Step:
    """One token of a text, and the most likely tokens in its place."""

    chosen: Candidate
    likeliest: Sequence[Candidate]


@dataclass(frozen=True)
class Sample:
    """One continuation of a prompt."""

    prompt: Prompt
    index: int
    """Index among the continuations of its prompt, from 0."""
    text: str
    """Without the prompt, special tokens and the stop string."""
    tokens: tuple[int, ...]
    """All generated tokens, including an end token."""
    finish_reason: FinishReason
    logprob: float
    """Sum of the tokens' log-probabilities in nats under the model, before any settings."""
    steps: Sequence[Step] = field(default=())

    def record(self) -> dict[str, Any]:
        """The sample as a JSON object."""
        record = {
            "prompt": self.prompt.text,
            "text": self.text,
            "index": self.index,
            "seed": self.prompt.seed,
            "tokens": list(self.tokens),
            "finish_reason": self.finish_reason,
            "logprob": round(self.logprob, DECIMALS),
        }
        if self.prompt.columns:
            record["columns"] = dict(self.prompt.columns)
        if self.prompt.cut:
            record["prompt_tokens_cut"] = self.prompt.cut
        if self.steps:
            record["steps"] = [_step(step) for step in self.steps]
        return record


def _step(step: Step) -> dict[str, Any]:
    return {
        **_candidate(step.chosen),
        "likeliest": [_candidate(candidate) for candidate in step.likeliest],
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "id": candidate.id,
        "token": candidate.token,
        "probability": round(candidate.probability, DECIMALS + 3),
        "after_settings": round(candidate.after_settings, DECIMALS + 3),
    }
