"""The documents of a source, each in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from llmkit.data import delimited, tables
from llmkit.data.reading import CHUNK, Reading, chunks, line_pieces
from llmkit.data.sources import Source


class Piece(NamedTuple):
    """A part of a document; `last` ends the document."""

    text: str
    last: bool


def pieces(source: Source, reading: Reading) -> Iterator[Piece]:
    """The documents of a source in order, blank ones included, in pieces of bounded size.

    A row of a table is a document. Plain text is one document (`data.document: file`), one for
    each line, or one for each block of lines between blank lines; the separators belong to none.
    """
    if delimited.named_format(source, reading.data) != "txt":
        return (Piece(text, True) for text in tables.texts(source, reading))
    split = {"file": _whole, "line": _by_line, "blank_line": _by_blank_line}
    return split[reading.data.document](chunks(source, reading))


def _whole(parts: Iterator[str]) -> Iterator[Piece]:
    yield from (Piece(part, False) for part in parts)
    yield Piece("", True)


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
