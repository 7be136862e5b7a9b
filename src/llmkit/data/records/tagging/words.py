"""WordSpans of a text by their offsets: split, joined to a running text, marked, and covered by
spans."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import regex
from numpy.typing import NDArray

WordSpans = NDArray[np.int32]
"""[words, 2], the offsets of each word's first character and of the character after its last."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(
    rf"(?V1)[[{_UNSPACED}]&&\p{{L}}]\p{{M}}*"
    rf"|(?:[[\p{{L}}\p{{N}}_]--[{_UNSPACED}]][\p{{M}}\u200c\u200d]*)+"
    r"|(?=[^\s\u200b\ufeff])\X"
)
_CHARACTER = regex.compile(r"\X")

_OPENING, _CLOSING = "<< ", " >>"
"""Enclose the marked words in the text that a model reads: ASCII, so every vocabulary has them."""


class MarkedWords(NamedTuple):
    """The words that the tags of a row are about, such as the predicate of semantic roles."""

    first: int
    end: int
    """The number after that of the last word."""


class CharacterSpan(NamedTuple):
    """A labelled span of a text."""

    start: int
    end: int
    label: str


def split_words(text: str) -> WordSpans:
    """The words of a running text: runs of letters and digits, and each other character alone; in
    scripts that are written without spaces, each character."""
    return np.array([each.span() for each in _WORD.finditer(text)], np.int32).reshape(-1, 2)


def joined_words(
    tokens: Sequence[str], spaced: Sequence[bool] | None = None
) -> tuple[str, WordSpans]:
    """The running text of tokens, and their places in it; a space follows each token unless
    `spaced` says otherwise."""
    lengths = np.fromiter(map(len, tokens), np.int32, len(tokens))
    gaps = np.ones(len(tokens), np.int32) if spaced is None else np.array(spaced, np.int32)
    ends = np.cumsum(lengths + gaps, dtype=np.int32) - gaps
    parts = (token + " " * gap for token, gap in zip(tokens, gaps.tolist(), strict=True))
    text = "".join(parts)
    return text[: ends[-1]] if len(tokens) else "", np.stack([ends - lengths, ends], axis=1)


def marked_text(text: str, words: WordSpans, mark: MarkedWords) -> tuple[str, WordSpans]:
    """The text with the marked words enclosed, and the places of all words in it."""
    start, end = int(words[mark.first, 0]), int(words[mark.end - 1, 1])
    moved = words.copy()
    moved[mark.first :] += len(_OPENING)
    moved[mark.end :] += len(_CLOSING)
    return f"{text[:start]}{_OPENING}{text[start:end]}{_CLOSING}{text[end:]}", moved


def unmarked_text(text: str) -> str:
    """The text without the enclosure of marked words."""
    return text.replace(_OPENING, "", 1).replace(_CLOSING, "", 1)


def words_within(words: WordSpans, start: int, end: int) -> tuple[int, int]:
    """The first word that overlaps a span, and the number after the last one; words are in
    order."""
    first = int(np.searchsorted(words[:, 1], start, side="right"))
    return first, max(first, int(np.searchsorted(words[:, 0], end, side="left")))


def stripped_span(text: str, span: CharacterSpan) -> CharacterSpan:
    """The span without the white space at its ends."""
    part = text[span.start : span.end]
    start = span.start + len(part) - len(part.lstrip())
    return CharacterSpan(start, max(start, span.start + len(part.rstrip())), span.label)


def span_faults(text: str, spans: Sequence[CharacterSpan]) -> Iterator[str]:
    """What is wrong with the spans of a text: they leave it, hold nothing, cut a character, or
    overlap."""
    edges = [each.start() for each in _CHARACTER.finditer(text)] + [len(text)] if spans else []
    before: CharacterSpan | None = None
    for span in sorted(spans):
        named = f"the span {span.start}-{span.end} ({span.label})"
        if not 0 <= span.start <= span.end <= len(text):
            yield f"{named} is outside of the text of {len(text):,} characters"
        elif not _WORD.search(text, span.start, span.end):
            yield f"{named} holds no word"
        elif cut := [edge for edge in span[:2] if edges[bisect_left(edges, edge)] != edge]:
            yield f"{named} cuts a character at {cut[0]}"
        elif before is not None and span.start < before.end:
            yield f"{named} overlaps {before.start}-{before.end} ({before.label})"
        before = span
