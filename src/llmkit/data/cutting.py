"""Cuts long documents where no token spans the cut, so that the parts encode to the same ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from llmkit.data.documents import Piece

Rule = re.Pattern[str]
"""Matches where a text may be cut; what it matches is left out of both parts."""

BEFORE_SPACE: Rule = re.compile(r'(?<=[^\W_])(?=[ \t\r\n!"(),:;<=>?\[\]{}\u3001\u3002\uff0c])')
"""After a letter or digit, before white space or punctuation that no word or number contains."""

AT_SPACE: Rule = re.compile(r"(?<=[^\W_]) (?=[^\W_])")
"""The space between two words: for tokenizers that put a space before each text by themselves."""

AT_ASCII_SPACE: Rule = re.compile(r"(?<=[A-Za-z0-9]) (?=[A-Za-z0-9])")
"""The same for tokenizers that drop characters they do not know, and join what stood around."""

NOWHERE: Rule = re.compile(r"(?!)")
"""Documents stay whole up to LONGEST."""

SIZE = 4096
"""Characters of a part, up to the next place for a cut: small parts encode faster than large."""

LONGEST = 1 << 20
"""Characters after which a text is cut wherever it stands, so that memory stays bounded."""


def cut(
    pieces: Iterable[Piece], rule: Rule, size: int = SIZE, longest: int = LONGEST
) -> Iterator[Piece]:
    """The same documents in parts of about `size` characters, cut by the rule alone.

    Only a run of more than `longest` characters without a place for a cut is cut anywhere.
    """
    rest = ""
    for text, last in pieces:
        rest += text
        start = 0
        while len(rest) - start > size:
            match = rule.search(rest, start + size, start + longest)
            if match:
                yield Piece(rest[start : match.start()], False)
                start = match.end()
            elif len(rest) - start > longest:
                yield Piece(rest[start : start + longest], False)
                start += longest
            else:
                break
        rest = rest[start:]
        if last:
            yield Piece(rest, True)
            rest = ""


def exact_rule(
    encode: Callable[[Sequence[str]], list[list[int]]], texts: Sequence[str], added: Iterable[str]
) -> Rule:
    """The first rule under which the parts of each text encode to the ids of the whole text.

    `added` are the tokens that are found in a text before it is parted into words; a rule that
    could cut through one of them is not exact.
    """
    whole = encode(texts)
    for rule in (BEFORE_SPACE, AT_SPACE, AT_ASCII_SPACE):
        if any(rule.search(token) for token in added):
            continue
        parts = [[part for part, _ in cut([Piece(text, True)], rule, size=256)] for text in texts]
        encoded = iter(encode(list(chain.from_iterable(parts))))
        if all(
            ids == list(chain.from_iterable(next(encoded) for _ in pieces))
            for ids, pieces in zip(whole, parts, strict=True)
        ):
            return rule
    return NOWHERE
