"""Split a source into documents, each in pieces of bounded size."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from string import ascii_letters, digits
from typing import NamedTuple

from llmkit.data.readers import delimited, tables
from llmkit.data.readers.decode import CHUNK, Reading, chunks, line_pieces
from llmkit.data.readers.files import Source
from llmkit.reporting.format import many

MARKS = (
    "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|endofdoc|>",
    "<|eos|>", "<eos>", "</s>", "<EOS>", "[EOS]", "<|end_story|>",
)  # fmt: skip
"""Common document separators."""

_OFTEN = 3
_TAIL = 20  # longer than a separator with its line ends


class Piece(NamedTuple):
    """A part of a document; `last` ends the document."""

    text: str
    last: bool


def pieces(source: Source, reading: Reading) -> Iterator[Piece]:
    """The documents of a source in order, blank ones included, in pieces of bounded size.

    A row of a table is a document. Plain text is one document (`data.document: file`), one for
    each line, one for each block of lines between blank lines, or separated
    by `data.document_separator`; separators belong to no document.
    """
    if delimited.named_format(source, reading.data) != "txt":
        return (Piece(text, True) for text in tables.texts(source, reading))
    if (mark := reading.data.document_separator) is not None:
        return _by_mark(chunks(source, reading), mark)
    split = {"file": _whole, "line": _by_line, "blank_line": _by_blank_line}
    return split[reading.data.document](chunks(source, reading))


def _whole(parts: Iterator[str]) -> Iterator[Piece]:
    yield from (Piece(part, False) for part in parts)
    yield Piece("", True)


def _by_mark(parts: Iterator[str], mark: str) -> Iterator[Piece]:
    held, opened = "", False
    for part in parts:
        *whole, held = (held + part).split(mark)
        yield from (Piece(text, True) for text in whole)
        opened = opened and not whole
        # The end may be the beginning of a separator.
        if sure := held[: max(0, len(held) - len(mark) + 1)]:
            yield Piece(sure, False)
            opened, held = True, held[len(sure) :]
    if held or opened:
        yield Piece(held, True)


def _by_line(parts: Iterator[str]) -> Iterator[Piece]:
    unfinished = False
    for piece in line_pieces(parts):
        body = _without_end(piece)
        unfinished = not piece.endswith("\n")
        yield Piece(body, not unfinished)
    if unfinished:
        yield Piece("", True)


def _by_blank_line(parts: Iterator[str]) -> Iterator[Piece]:
    opened = False  # the document has text
    blank = True  # the line has only white space so far
    held = ""  # white space that belongs to the document only if text follows
    for piece in line_pieces(parts):
        ended = piece.endswith("\n")
        blank = blank and not piece.strip(" \t\r\n") and len(held) < CHUNK
        if blank and ended:
            if opened:
                yield Piece("", True)
            opened, held = False, ""
        elif blank:
            held += piece
        else:
            body = _without_end(piece)
            yield Piece(held + body, False)
            opened, blank, held = True, ended, piece[len(body) :]
    if opened:
        yield Piece("", True)


def _without_end(line: str) -> str:
    return line[:-2] if line.endswith("\r\n") else line.removesuffix("\n")


class MarkCounts:
    """Counts document separators that occur inside documents."""

    def __init__(self) -> None:
        self.found: dict[str, list[int]] = {}
        """For each separator, the number of occurrences, and of those that fill a whole line."""
        self._end = ""

    def add(self, piece: Piece) -> None:
        """Count the separators that end in this piece."""
        text = self._end + piece.text
        for mark in MARKS:
            if mark in text:
                counts = self.found.setdefault(mark, [0, 0])
                for place, sought in enumerate((mark, f"\n{mark}\n")):
                    counts[place] += text.count(sought) - self._end.count(sought)
        self._end = "" if piece.last else text[-_TAIL:]


def mark_hints(found: dict[str, list[int]], n_documents: int) -> Iterator[str]:
    """A hint for each likely document separator that was read as text."""
    for mark, (number, lines) in found.items():
        if number >= _OFTEN:
            separator = f"\\n{mark}\\n" if 2 * lines > number else mark
            yield (
                f"the mark {mark} occurs {number:,} times in {many(n_documents, 'document')} and "
                "is read as ordinary text; to separate the documents of plain text there: "
                f"'data.document_separator=\"{separator}\"'"
            )


Rule = re.Pattern[str]
"""A zero-width pattern that matches where a text may be cut."""

BEFORE_SPACE: Rule = re.compile(r'(?<=[^\W_])(?=[ \t\r\n!"(),:;<=>?\[\]{}\u3001\u3002\uff0c])')
"""After a letter or digit, before white space or punctuation that no word or number contains."""

NOWHERE: Rule = re.compile(r"(?!)")
"""Documents stay whole up to LONGEST characters."""

SIZE = 4096
"""Minimum characters of a part before it is cut: small parts encode faster than large ones."""

LONGEST = 1 << 20
"""Characters after which a text is cut anywhere, so that memory stays bounded."""


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
    """Cut documents into parts of about `size` characters, only where the rule allows.

    A run of more than `longest` characters without such a place is cut anywhere. The last document
    may continue elsewhere.
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
    if rest:
        yield Piece(rest, False)


def exact_rule(
    encode: Callable[[Sequence[Piece]], list[list[int]]],
    texts: Sequence[str],
    vocabulary: Iterable[str],
    added: Sequence[str],
) -> Rule:
    """The first rule for which the encoded parts of each text equal the encoded whole text.

    `encode` takes the parts of documents in order. `added` are tokens that are matched
    before a text is split into words; a rule that could cut through one of them is not exact.
    """
    wholes = [Piece(text, True) for text in texts]
    expected = list(chain.from_iterable(encode(wholes)))
    for rule in (BEFORE_SPACE, at_line(vocabulary)):
        if not any(rule.search(token) for token in added):
            parts = list(cut(wholes, rule, size=256))
            if list(chain.from_iterable(encode(parts))) == expected:
                return rule
    return NOWHERE
