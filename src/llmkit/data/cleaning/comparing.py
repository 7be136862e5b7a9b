"""Split text in any script into words, to compare documents."""

from __future__ import annotations

import re
import unicodedata

import regex

OVERLAP = 3
"""Words per overlapping run; two texts are compared by the runs that they share."""

_BETWEEN = {code: " " for code in range(128) if not chr(code).isalnum()}
_PLAIN = re.compile(r"[^\W_]+")
_SPECIAL = re.compile("[\u0300-\u1fff\u2c00-\U0010ffff]")
"""What only the slower pattern reads: combining marks, and scripts other than Latin."""
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_ANY = regex.compile(
    rf"[{_UNSPACED}]|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+", flags=regex.VERSION1
)


def compared_words(text: str) -> list[str]:
    """The words of a text for comparing it, without case: runs of letters, marks and digits, and
    each character of a script that writes no spaces between words."""
    if text.isascii():
        return text.lower().translate(_BETWEEN).split()
    text = unicodedata.normalize("NFKC", text).casefold()
    return _ANY.findall(text) if _SPECIAL.search(text) else _PLAIN.findall(text)


def runs_of_words(words: list[str]) -> list[str]:
    """The overlapping runs of OVERLAP words; a shorter text is one run."""
    if len(words) <= OVERLAP:
        return [" ".join(words)] if words else []
    return [" ".join(run) for run in zip(words, words[1:], words[2:], strict=False)]
