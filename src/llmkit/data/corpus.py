"""All documents of a data set as UTF-8 on the disk, read once, and their split in two."""

from __future__ import annotations

import codecs
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmkit.config.schema import DataConfig
from llmkit.data import sources
from llmkit.data.cache import writing
from llmkit.data.documents import Piece, pieces
from llmkit.data.order import permutation
from llmkit.data.reading import Reading
from llmkit.data.sources import Source

AUTO_SHARE, AUTO_BYTES = 0.1, 2_000_000
"""What `data.validation_fraction: auto` holds out: a share, and at most this much text."""

_WINDOW = 1 << 20
_DOCUMENTS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Corpus:
    """Documents end to end in one file without a name, which is gone when it is closed.

    A killed process leaves nothing behind, and each later pass reads this file and no source.
    """

    text: BinaryIO
    ends: NDArray[np.int64]
    """Where each document ends, in bytes; mapped from a second such file."""
    blank: int
    """Documents without text, which were left out."""
    undecodable: int
    """Bytes that were replaced or ignored."""
    ranges: tuple[tuple[int, int], ...]
    """The documents that each source holds, as first and one past the last."""

    @property
    def n_documents(self) -> int:
        return len(self.ends)

    @property
    def n_bytes(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def close(self) -> None:
        """Give the space on the disk back."""
        self.text.close()

    def start(self, document: int) -> int:
        """Where a document begins, in bytes."""
        return int(self.ends[document - 1]) if document else 0


@dataclass(frozen=True)
class Documents:
    """A part of a corpus: whole documents, and perhaps one end or beginning of a document."""

    corpus: Corpus
    chosen: NDArray[np.bool_]
    """Which documents belong to the part."""
    n_documents: int
    n_bytes: int
    keep_from: tuple[int, int] | None = None
    """A document and the byte of the corpus from which on it belongs to the part."""
    keep_until: tuple[int, int] | None = None
    """A document and the byte of the corpus up to which it belongs to the part."""

    def pieces(self) -> Iterator[Piece]:
        """The documents in the order of the corpus, in pieces of at most a megabyte."""
        for starts, stops in self._spans():
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                yield from self._document(start, stop)

    def sample(self, n_bytes: int, size: int = 1 << 16) -> Iterator[str]:
        """About `n_bytes` of the text, taken evenly in windows of `size` bytes; the rest is unread.

        A window ends with its document, and drops the part of a character at either of its ends.
        """
        every = max(size, -(-size * self.n_bytes // n_bytes))
        before = 0
        for starts, stops in self._spans():
            ends = before + np.cumsum(stops - starts)
            begins = ends - (stops - starts)
            here = (begins % every < size) | (begins // every < (ends - 1) // every)
            for document in np.flatnonzero(here).tolist():
                begin, end = int(begins[document]), int(ends[document])
                shift = int(starts[document]) - begin
                for window in range(begin - begin % every, end, every):
                    first, last = max(begin, window), min(end, window + size)
                    if text := self._window(first + shift, last + shift):
                        yield text
            before = int(ends[-1]) if len(ends) else before

    def sizes(self) -> Iterator[NDArray[np.int64]]:
        """The bytes of each document, in order, some thousands at once."""
        for starts, stops in self._spans():
            yield (stops - starts)[stops > starts]

    def _window(self, start: int, stop: int) -> str:
        length = max(0, stop - start)
        return os.pread(self.corpus.text.fileno(), length, start).decode(errors="ignore")

    def _document(self, start: int, stop: int) -> Iterator[Piece]:
        file = self.corpus.text.fileno()
        decoder = codecs.getincrementaldecoder("utf-8")()
        while start < stop:
            chunk = os.pread(file, min(_WINDOW, stop - start), start)
            start += len(chunk)
            yield Piece(decoder.decode(chunk), start == stop)

    def _spans(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Where the documents begin and end in the corpus."""
        ends = self.corpus.ends
        for first in range(0, len(ends), _DOCUMENTS_AT_ONCE):
            stops = np.array(ends[first : first + _DOCUMENTS_AT_ONCE])
            starts = np.concatenate(([self.corpus.start(first)], stops[:-1]))
            for document, cut, bounds in (
                (*self.keep_from, starts) if self.keep_from else (-1, 0, starts),
                (*self.keep_until, stops) if self.keep_until else (-1, 0, stops),
            ):
                if first <= document < first + len(stops):
                    bounds[document - first] = cut
            here = self.chosen[first : first + len(stops)]
            yield starts[here], stops[here]


def spool(
    found: Sequence[Source], data: DataConfig, directory: Path, advance: Callable[[int], None]
) -> Corpus:
    """Read all documents of the sources once, blank ones left out, into files in the directory.

    Raises what reading raises, and WriteError where the directory cannot be written.
    """
    reading = Reading(data, advance)
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        text = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  the corpus keeps it open
        with tempfile.TemporaryFile(dir=directory) as offsets:
            writer = _Writer(text, offsets)
            ranges = []
            for source in found:
                before = writer.n_documents
                for piece in pieces(source, reading):
                    writer.add(piece)
                ranges.append((before, writer.n_documents))
                sources.check_unchanged(source)
            ends = writer.finish()
    return Corpus(text, ends, writer.blank, reading.undecodable, tuple(ranges))


def everything(corpus: Corpus) -> Documents:
    """The whole corpus."""
    chosen = np.ones(corpus.n_documents, dtype=np.bool_)
    return Documents(corpus, chosen, corpus.n_documents, corpus.n_bytes)


def split(corpus: Corpus, fraction: float | str, seed: int) -> tuple[Documents, Documents]:
    """The training and the validation part: each byte of the corpus is in exactly one of them.

    Whole documents are drawn in an order that hangs on the seed until the fraction is held out; a
    document that would take it past twice the fraction is passed over. Where that reaches less
    than half of the fraction (one document, or a few huge ones), the last stretch of the longest
    document is held out instead, from a line break where there is one. The corpus has documents.
    """
    if fraction == "auto":
        wanted = min(int(AUTO_SHARE * corpus.n_bytes), AUTO_BYTES)
    else:
        wanted = int(float(fraction) * corpus.n_bytes)
    wanted = max(1, wanted)
    held = _draw(corpus, wanted, seed)
    n_bytes = int(np.diff(corpus.ends, prepend=0)[held].sum()) if len(held) else 0
    if 2 * n_bytes < wanted:
        return _split_longest(corpus, wanted)
    chosen = np.zeros(corpus.n_documents, dtype=np.bool_)
    chosen[held] = True
    return (
        Documents(corpus, ~chosen, corpus.n_documents - len(held), corpus.n_bytes - n_bytes),
        Documents(corpus, chosen, len(held), n_bytes),
    )


def _draw(corpus: Corpus, wanted: int, seed: int) -> list[int]:
    """The documents that are held out; never all."""
    held: list[int] = []
    n_bytes = 0
    for document in _shuffled(corpus.n_documents, seed):
        size = int(corpus.ends[document]) - corpus.start(document)
        if n_bytes + size <= min(2 * wanted, corpus.n_bytes - 1):
            held.append(document)
            n_bytes += size
        if n_bytes >= wanted:
            break
    return held


def _shuffled(n: int, seed: int) -> Iterator[int]:
    order = permutation(n, (seed, 0)) if n else None
    for first in range(0, n, _DOCUMENTS_AT_ONCE):
        assert order
        yield from order(np.arange(first, min(first + _DOCUMENTS_AT_ONCE, n))).tolist()


def _split_longest(corpus: Corpus, wanted: int) -> tuple[Documents, Documents]:
    longest = int(np.diff(corpus.ends, prepend=0).argmax())
    start, end = corpus.start(longest), int(corpus.ends[longest])
    cut = _cut(corpus, max(start + 1, end - wanted), end)
    n = corpus.n_documents
    alone = np.zeros(n, dtype=np.bool_)
    alone[longest] = True
    train = Documents(
        corpus, np.ones(n, np.bool_), n, corpus.n_bytes - (end - cut), keep_until=(longest, cut)
    )
    validation = Documents(corpus, alone, int(cut < end), end - cut, keep_from=(longest, cut))
    return train, validation


def _cut(corpus: Corpus, earliest: int, end: int) -> int:
    """The first place from `earliest` on after a line break, else between two characters."""
    before = earliest - 1
    length = max(5, min((end - before) // 2, _WINDOW))
    window = os.pread(corpus.text.fileno(), min(length, end - before), before)
    line = window.find(b"\n") + 1
    if line and before + line < end:
        return before + line
    # Bytes of the form 10xxxxxx go on with a character.
    whole = (i for i in range(1, len(window)) if window[i] & 0xC0 != 0x80)
    return before + next(whole, len(window))


class _Writer:
    """Writes documents one after another, and takes back those that turn out to be blank."""

    def __init__(self, text: BinaryIO, offsets: BinaryIO) -> None:
        self.text, self.offsets = text, offsets
        self.ends: array[int] = array("q")
        self.n_documents = self.blank = 0
        self.position = self.start = 0
        self.empty = True

    def add(self, piece: Piece) -> None:
        text, last = piece
        if self.empty and text and not text.isspace():
            self.empty = False
        if self.empty and last and self.position == self.start:
            self.blank += 1
            return
        encoded = text.encode()
        self.text.write(encoded)
        self.position += len(encoded)
        if last:
            self._end()

    def _end(self) -> None:
        if self.empty:
            self.blank += 1
            self.position = self.start
            self.text.seek(self.start)
            self.text.truncate()
            return
        self.n_documents += 1
        self.ends.append(self.position)
        if len(self.ends) == _DOCUMENTS_AT_ONCE:
            self._flush()
        self.start, self.empty = self.position, True

    def _flush(self) -> None:
        self.offsets.write(self.ends.tobytes())
        del self.ends[:]

    def finish(self) -> NDArray[np.int64]:
        """Where the documents end, mapped into memory."""
        self._flush()
        self.text.flush()
        self.offsets.flush()
        if not self.n_documents:
            return np.zeros(0, dtype=np.int64)
        return np.memmap(self.offsets, dtype=np.int64, mode="r", shape=(self.n_documents,))
