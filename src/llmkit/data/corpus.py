"""All documents of a data set as UTF-8 on the disk, read once, and the parts made of them."""

from __future__ import annotations

import codecs
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from llmkit.config.schema import DataConfig
from llmkit.data import sources
from llmkit.data.documents import MarkCounts, Piece, pieces
from llmkit.data.reading import Reading
from llmkit.data.sources import Source
from llmkit.storage.cache import writing

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
    marks: dict[str, list[int]]
    """Marks between documents that were read as text, as `MarkCounts` counts them."""

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
    """A part of a corpus: whole documents, and the ends or beginnings of some."""

    corpus: Corpus
    chosen: NDArray[np.bool_]
    """Which documents belong to the part."""
    n_documents: int
    n_bytes: int
    cut_documents: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """The chosen documents of which a segment alone belongs to the part, in order."""
    cut_places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """The byte of the corpus at which each of them is cut."""
    keeps: Literal["before", "after"] = "before"
    """Which side of the cuts belongs to the part."""

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

    def by_source(self) -> list[tuple[int, int, int]]:
        """The sources with documents in the part: number, documents, and segments among them."""
        found = []
        for number, (first, last) in enumerate(self.corpus.ranges):
            if n_documents := int(np.count_nonzero(self.chosen[first:last])):
                low, high = np.searchsorted(self.cut_documents, (first, last)).tolist()
                found.append((number, n_documents, high - low))
        return found

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
            low, high = np.searchsorted(self.cut_documents, (first, first + len(stops)))
            bounds = stops if self.keeps == "before" else starts
            bounds[self.cut_documents[low:high] - first] = self.cut_places[low:high]
            here = self.chosen[first : first + len(stops)]
            yield starts[here], stops[here]


def spool(
    found: Sequence[Source], data: DataConfig, directory: Path, advance: Callable[[int], None]
) -> Corpus:
    """Read all documents of the sources once, blank ones left out, into files in the directory.

    Raises what reading raises, and WriteError where the directory cannot be written.
    """
    reading, marks = Reading(data, advance), MarkCounts()
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
                    marks.add(piece)
                ranges.append((before, writer.n_documents))
                sources.check_unchanged(source)
            ends = writer.finish()
    return Corpus(text, ends, writer.blank, reading.undecodable, tuple(ranges), marks.found)


def everything(corpus: Corpus) -> Documents:
    """The whole corpus."""
    chosen = np.ones(corpus.n_documents, dtype=np.bool_)
    return Documents(corpus, chosen, corpus.n_documents, corpus.n_bytes)


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
