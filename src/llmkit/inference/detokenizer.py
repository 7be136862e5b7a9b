"""Tokens become text: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

CONTEXT = 16
"""Last tokens of the prompt that the first new ones are decoded with: spaces depend on them."""
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """The text of one sequence so far: with `at_once` after every token, else when it is closed.

    Only the tokens since the last whole character are decoded anew, so a long text costs no more
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
        """What one more token would add, and so many characters before it."""
        fresh = self._decode([*self._ids, token])[len(self._known) :]
        return self.text[max(0, len(self.text) - before) :] + fresh

    def close(self) -> None:
        """Adds what is left of a character that was never completed."""
        if not self.stopped:
            self._append(self._decode())

    def new_text(self, final: bool) -> str:
        """The text since the last call; what may be the beginning of a stop string waits."""
        end = len(self.text) if final else len(self.text) - self._held()
        new, self._returned = self.text[self._returned : end], max(self._returned, end)
        return new

    def _append(self, decoded: str) -> None:
        fresh = decoded[len(self._known) :]
        if not fresh:
            return
        # A stop string may begin in what was there and end in what is new.
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
        """Length of the longest end of the text that begins a stop string."""
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
