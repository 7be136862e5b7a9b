"""The rules for text from web pages by Gopher (Rae et al. 2021, table A1), over words of any
script."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import regex

_SYMBOLS = re.compile(r"#|\.\.\.|…")
_LETTER = regex.compile(r"\p{L}")
_FREQUENT = {
    "en": "the be to of and that have with",
    "de": "der die das und ist in zu den nicht mit",
    "fr": "le la les et est de des un une que dans",
    "es": "el la los las de y que en un una es por",
    "it": "il la le di e che in un una è per non",
    "pt": "o a os as de e que em um uma é não",
    "nl": "de het een en van in is dat op te",
    "ru": "и в не на что по как это он",
}
"""Frequent words, where the language is known; without a list there is no rule."""


def broken_rules(
    text: str, lines: list[str], words: Sequence[str], language: str
) -> Iterator[tuple[str, float, float]]:
    """The rules that a text breaks: name, measured value and limit.

    A text in a script without spaces is measured by characters, to which the limits on the
    length of words do not apply.
    """
    n = len(words)
    full = [line.strip() for line in lines if line.strip()]
    letters = sum(map(len, words)) / max(1, n)
    if n < 50:
        yield "words", n, 50
    if n > 100_000:
        yield "words", n, 100_000
    if language not in ("zh", "ja", "th") and not 3 <= letters <= 10:
        yield "mean length of words", letters, 3 if letters < 3 else 10
    symbols = len(_SYMBOLS.findall(text)) / max(1, n)
    if symbols > 0.1:
        yield "symbols per word", symbols, 0.1
    bullets = sum(line[0] in "•-*" for line in full) / max(1, len(full))
    if bullets > 0.9:
        yield "lines with a bullet", bullets, 0.9
    open_ended = sum(line.endswith(("...", "…")) for line in full) / max(1, len(full))
    if open_ended > 0.3:
        yield "lines that end in an ellipsis", open_ended, 0.3
    with_letters = sum(bool(_LETTER.search(word)) for word in words) / max(1, n)
    if with_letters < 0.8:
        yield "words with a letter", with_letters, 0.8
    if language in _FREQUENT:
        frequent = len(set(_FREQUENT[language].split()) & set(words))
        if frequent < 2:
            yield "frequent words", frequent, 2
