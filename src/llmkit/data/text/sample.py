"""An even sample of a text that is read once, and what trains a tokenizer on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from transformers import PreTrainedTokenizerFast

from llmkit.models import tokenizer as tokenizers

LEAST_SAMPLED = 1_000_000
"""Minimum number of characters in the sample of a longer text."""

_PART = 4096
"""Maximum number of characters in a part of a sample."""


@dataclass
class TextSample:
    """Parts of a text at equal distances, in bounded memory, however long the text is."""

    parts: list[str] = field(default_factory=list)
    every: int = 1
    """One of this many parts is kept."""
    n_seen: int = 0
    """Number of parts so far."""
    n_characters: int = 0
    """Number of characters that are kept."""

    def add(self, text: str) -> None:
        """Adds the next piece of the text."""
        for start in range(0, len(text), _PART):
            if self.n_seen % self.every == 0:
                self.parts.append(text[start : start + _PART])
                self.n_characters += len(self.parts[-1])
            self.n_seen += 1
        while self.n_characters >= 2 * LEAST_SAMPLED and len(self.parts) > 1:
            self.parts, self.every = self.parts[::2], 2 * self.every
            self.n_characters = sum(map(len, self.parts))


def trainer_of(objective: str) -> Callable[..., PreTrainedTokenizerFast]:
    """The function that trains a tokenizer for a pretraining objective."""
    if objective == "span_corruption":
        return partial(tokenizers.train_bpe_with_end, sentinels=100)
    return tokenizers.train_bpe_with_frame if objective == "masked" else tokenizers.train_bpe
