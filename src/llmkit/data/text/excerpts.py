"""Excerpts of tokenized text that people can read, as prompts for samples during training."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmkit.data.text.token_file import TokenFile

VISIBLE = 20
"""Minimum number of visible characters of an excerpt, where the documents are long enough."""

_SHORTER = (VISIBLE, 8, 1)
"""Lengths to try, for texts of short documents."""

_PLACES = 8  # places to try for each excerpt
_WINDOW = 192  # tokens to read at a place
_NEAR = 512  # tokens from the start of a document within which its start is shown
_LONGEST_WORD = 24  # characters; longer text without a space is cut at a character
_MARKUP = re.compile(r"<[^<>]*>?|\{\{.*?\}\}|&\w+;|https?://\S+")


def excerpts(
    files: Sequence[TokenFile], tokenizer: PreTrainedTokenizerBase, count: int = 3
) -> list[str]:
    """At most `count` openings of documents, or sentences from long ones, spread over the files.

    Each has at least `VISIBLE` visible characters, most of them letters or digits outside markup,
    and ends with a word, or in a script without spaces with a character. Where documents are
    shorter, so are the excerpts; text without letters has none. The same files give the same
    excerpts.
    """
    for visible in _SHORTER:
        found: list[str] = []
        for number in range(count):
            file = files[
                number * len(files) // count if len(files) > count else number % len(files)
            ]
            texts = _windows(file, tokenizer, number, count)
            each = (_opening(text, whole, visible) for text, whole in texts)
            found += [next((one for one in each if one and one not in found), "")]
        if any(found):
            return [text for text in found if text]
    return []


def _windows(
    file: TokenFile, tokenizer: PreTrainedTokenizerBase, number: int, count: int
) -> Iterator[tuple[str, bool]]:
    """Decoded text at places in this part of the file, and whether it opens a document."""
    size = len(file.ids)
    for part in range(_PLACES):
        place = (number * _PLACES + part) * size // (count * _PLACES)
        document = max(0, int(np.searchsorted(file.starts, place, side="right")) - 1)
        start = int(file.starts[document]) + 1
        is_last = document + 1 == len(file.starts)
        end = size if is_last else int(file.starts[document + 1])
        whole = place - start < _NEAR
        begin = start if whole else place
        ids = file.ids[begin : min(end, begin + _WINDOW)].tolist()
        yield tokenizer.decode(ids, skip_special_tokens=True), whole


def _opening(text: str, whole: bool, visible: int) -> str:
    """The first words of a text with so many visible characters; empty if they cannot be read."""
    if not whole:  # it may begin within a word
        _, space, rest = text.partition(" ")
        text = rest if space and len(text) - len(rest) <= _LONGEST_WORD else text[1:]
    text = text.lstrip().lstrip("\N{REPLACEMENT CHARACTER}")
    seen = 0
    for place, character in enumerate(text):
        seen += not character.isspace()
        if seen >= visible:
            excerpt = text[: _end_of_word(text, place + 1)]
            return excerpt if _is_readable(excerpt) else ""
    return ""


def _end_of_word(text: str, place: int) -> int:
    """The end of the word that reaches to `place`; without a space near, of its character."""
    space = re.compile(r"\s").search(text, place)
    if space and space.start() - place <= _LONGEST_WORD:
        return space.start()
    if space is None and len(text) - place <= _LONGEST_WORD:
        return len(text)
    while place < len(text) and unicodedata.category(text[place]) in ("Mn", "Mc", "Me", "Cf"):
        place += 1
    return place


def _is_readable(text: str) -> bool:
    """Whether most visible characters are letters, marks or digits outside markup."""
    if "\N{REPLACEMENT CHARACTER}" in text:
        return False
    letters = sum(unicodedata.category(c)[0] in "LMN" for c in _MARKUP.sub("", text))
    return 2 * letters >= sum(not c.isspace() for c in text)
