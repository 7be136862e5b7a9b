"""Detokenization: whole characters only, up to the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

CONTEXT = 16
"""Last tokens of the prompt that are decoded with the first new ones: spaces depend on them."""
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """The text of one sequence: with `at_once` decoded after every token, otherwise on `close`.

    Only the tokens since the last whole character are decoded again, so a long text costs no more
    per token than a short one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Sequence[int],
        stop: Sequence[str],
        at_once: bool = True,
    ) -> None:
        self.tokenizer, self.stop, self.at_once = tokenizer, stop, at_once
        self.text = ""
        self.stopped = False
        self._returned = 0  # characters of the text that `new_text` has returned
        self._ids = list(prompt[-CONTEXT:])
        self._known = self._decode()
        self._new_from = len(self._ids)

    def append(self, token: int) -> None:
        """Appends a token."""
        self._ids.append(token)
        if not self.at_once:
            return
        decoded = self._decode()
        if not decoded.endswith(INCOMPLETE):
            self._append(decoded)

    def with_next(self, token: int, before: int) -> str:
        """The text that one more token would add, preceded by the last `before` characters."""
        fresh = self._decode([*self._ids, token])[len(self._known) :]
        return self.text[max(0, len(self.text) - before) :] + fresh

    def close(self) -> None:
        """Adds the rest of an incomplete character."""
        if not self.stopped:
            self._append(self._decode())

    def new_text(self, final: bool) -> str:
        """The text since the last call; a possible start of a stop string is held back."""
        end = len(self.text) if final else len(self.text) - self._held()
        new, self._returned = self.text[self._returned : end], max(self._returned, end)
        return new

    def _append(self, decoded: str) -> None:
        fresh = decoded[len(self._known) :]
        if not fresh:
            return
        # A stop string may begin in the old text and end in the new.
        longest = max(map(len, self.stop), default=1)
        begin = max(0, len(self.text) - longest + 1)
        self.text += fresh
        self._ids = self._ids[self._new_from :]
        self._known = self._decode()
        self._new_from = len(self._ids)
        found = [at for each in self.stop if (at := self.text.find(each, begin)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _held(self) -> int:
        """Length of the longest suffix of the text that is a prefix of a stop string."""
        longest = max((len(each) - 1 for each in self.stop), default=0)
        for size in range(min(longest, len(self.text)), 0, -1):
            if any(each.startswith(self.text[-size:]) for each in self.stop):
                return size
        return 0

    def _decode(self, ids: Sequence[int] | None = None) -> str:
        decoded: str = self.tokenizer.decode(
            list(self._ids if ids is None else ids),
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return decoded
