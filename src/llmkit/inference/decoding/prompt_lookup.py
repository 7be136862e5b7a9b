"""Prompt lookup: guesses what comes next in a text from what came next earlier in it.

Saxena, "Prompt Lookup Decoding" (2023). A text that repeats itself or its prompt, such as a
summary, an edited program or a loop, then takes one forward pass for several tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

NGRAM = 3
"""Number of tokens that must have occurred before."""


class PromptLookup:
    """The tokens of a text so far, and where each n-gram of them ended last.

    It guesses at every token, and counts for how many in a row it has been right. It gives no more
    guesses than that, because each costs time: none in a text that does not repeat itself.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._next: int | None = None
        """Place of the token that is guessed next."""
        self._right = 0
        self.extend(ids)

    def __len__(self) -> int:
        return len(self._ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Adds tokens to the text."""
        for id in ids:
            is_right = self._next is not None and self._ids[self._next] == id
            self._right = self._right + 1 if is_right else 0
            self._ids.append(id)
            ngram = tuple(self._ids[-NGRAM:])
            found = self._ends.get(ngram)
            self._ends[ngram] = len(self._ids)
            self._next = self._next + 1 if is_right and self._next is not None else found

    def guesses(self, most: int) -> list[int]:
        """Up to `most` tokens that may follow."""
        if self._next is None:
            return []
        # Beyond the end of the text, its repetition is assumed to continue.
        period = len(self._ids) - self._next
        count = min(most, self._right)
        return [self._ids[self._next + place % period] for place in range(count)]
