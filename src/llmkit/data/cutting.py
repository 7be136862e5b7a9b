"""Cuts long documents where no token spans the cut, so that the parts encode to the same ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from string import ascii_letters, digits

from llmkit.data.documents import Piece

Rule = re.Pattern[str]
"""Matches, without width, where a text may be cut."""

BEFORE_SPACE: Rule = re.compile(r'(?<=[^\W_])(?=[ \t\r\n!"(),:;<=>?\[\]{}\u3001\u3002\uff0c])')
"""After a letter or digit, before white space or punctuation that no word or number contains."""

NOWHERE: Rule = re.compile(r"(?!)")
"""Documents stay whole up to LONGEST."""

SIZE = 4096
"""Characters of a part, up to the next place for a cut: small parts encode faster than large."""

LONGEST = 1 << 20
"""Characters after which a text is cut wherever it stands, so that memory stays bounded."""


def at_line(vocabulary: Iterable[str]) -> Rule:
    """After a line break, before a letter or digit that no token joins to one.

    For tokenizers whose tokens hold several words: merges across such a place do not exist.
    """
    joined = {after for token in vocabulary for after in re.findall(r"(?<=\n)[A-Za-z0-9]", token)}
    free = sorted(set(ascii_letters + digits) - joined)
    return re.compile(rf"(?<=\n)(?=[{''.join(free)}])") if free else NOWHERE


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
            if not match and len(rest) - start <= longest:
                break
            end = match.start() if match else start + longest
            yield Piece(rest[start:end], False)
            start = end
        rest = rest[start:]
        if last:
            yield Piece(rest, True)
            rest = ""


def exact_rule(
    encode: Callable[[Sequence[Piece]], list[list[int]]],
    texts: Sequence[str],
    vocabulary: Iterable[str],
    added: Sequence[str],
) -> Rule:
    """The first rule under which the parts of each text encode to the ids of the whole text.

    `encode` takes the parts of documents in order. `added` are the tokens that are found in a text
    before it is parted into words; a rule that could cut through one of them is not exact.
    """
    wholes = [Piece(text, True) for text in texts]
    expected = list(chain.from_iterable(encode(wholes)))
    for rule in (BEFORE_SPACE, at_line(vocabulary)):
        if not any(rule.search(token) for token in added):
            parts = list(cut(wholes, rule, size=256))
            if list(chain.from_iterable(encode(parts))) == expected:
                return rule
    return NOWHERE
