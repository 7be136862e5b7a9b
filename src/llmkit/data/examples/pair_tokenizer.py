"""Encode source and target texts for an encoder-decoder model, each as its tokenizer does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmkit.data.examples.encoded import Encoded, padding_id
from llmkit.models.control_tokens import ControlTokenCount, control_tokens

_TEXTS_AT_ONCE = 1024


class PairTokenizer:
    """The tokenizer of an encoder-decoder model: some have another vocabulary for targets, or put
    the code of a language around a text.

    `prefix` is put before each source. Names of control tokens in a text are read as text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prefix: str = "") -> None:
        self.tokenizer, self.prefix = tokenizer, prefix
        self.pad_id = padding_id(tokenizer)
        self.named = ControlTokenCount(control_tokens(tokenizer))

    def sources(
        self,
        texts: Sequence[str],
        max_length: int | None,
        advance: Callable[[int], None] = lambda n: None,
    ) -> Encoded:
        """The source texts with their prefix, cut after `max_length` tokens."""
        return self._encoded([self.prefix + text for text in texts], "text", max_length, advance)

    def targets(
        self,
        texts: Sequence[str],
        max_length: int | None,
        advance: Callable[[int], None] = lambda n: None,
    ) -> Encoded:
        """The target texts, cut after `max_length` tokens."""
        return self._encoded(texts, "text_target", max_length, advance)

    def _encoded(
        self,
        texts: Sequence[str],
        side: str,
        max_length: int | None,
        advance: Callable[[int], None],
    ) -> Encoded:
        ids: list[list[int]] = []
        uncut: list[int] = []
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            some = texts[first : first + _TEXTS_AT_ONCE]
            for text in some:
                self.named.add((text,))
            found = self._ids(some, side)
            uncut += map(len, found)
            long = [row for row, each in enumerate(found) if len(each) > (max_length or len(each))]
            if long:  # the tokenizer keeps its special tokens when it cuts
                cut = self._ids(
                    [some[row] for row in long], side, truncation=True, max_length=max_length
                )
                for row, each in zip(long, cut, strict=True):
                    found[row] = each
            ids += found
            advance(len(some))
        return Encoded.of_ids(ids, self.pad_id, uncut)

    def _ids(self, texts: Sequence[str], side: str, **options: Any) -> list[list[int]]:
        given = {side: list(texts)}
        found: list[list[int]] = self.tokenizer(
            **given, split_special_tokens=True, verbose=False, **options
        )["input_ids"]
        return found
