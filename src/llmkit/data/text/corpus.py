"""Spool all documents of a data set to disk as UTF-8, and split them into parts."""

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
from llmkit.data.examples.order import permutation
from llmkit.data.readers import files
from llmkit.data.readers.decode import Reading
from llmkit.data.readers.files import Source
from llmkit.data.records.splits import AUTO_SHARE
from llmkit.data.text.documents import MarkCounts, Piece, pieces
from llmkit.storage.cache import writing

_WINDOW = 1 << 20
_DOCUMENTS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Corpus:
    """Concatenated documents in an unnamed temporary file, which disappears when it is closed.

    A killed process leaves nothing behind, and later passes read this file instead of the sources.
    """

    text: BinaryIO
    ends: NDArray[np.int64]
    """[documents], the byte offset of each document's end; memory-mapped."""
    blank: int
    """Number of documents without text, which were skipped."""
    undecodable: int
    """Number of invalid bytes that were replaced or ignored."""
    ranges: tuple[tuple[int, int], ...]
    """The range of documents of each source, as first and one past the last."""
    marks: dict[str, list[int]]
    """Document separators that were read as text, as counted by `MarkCounts`."""

    @property
    def n_documents(self) -> int:
        return len(self.ends)

    @property
    def n_bytes(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def close(self) -> None:
        """Release the disk space."""
        self.text.close()

    def start(self, document: int) -> int:
        """The byte offset of a document's start."""
        return int(self.ends[document - 1]) if document else 0

    def windows(self, document: int, size: int, count: int) -> str:
        """A document, or of a longer one `count` evenly spaced windows of `size` bytes, without
        partial characters at their ends."""
        start, end = self.start(document), int(self.ends[document])
        begins, length = [start], end - start
        if length > size * count:
            begins = np.linspace(start, end - size, count).astype(np.int64).tolist()
            length = size
        file = self.text.fileno()
        parts = (os.pread(file, length, begin) for begin in begins)
        return "\n".join(part.decode(errors="ignore") for part in parts)


@dataclass(frozen=True)
class Documents:
    """A part of a corpus: whole documents, and the beginnings or ends of others."""

    corpus: Corpus
    chosen: NDArray[np.bool_]
    """[documents], whether each belongs to the part."""
    n_documents: int
    n_bytes: int
    cut_documents: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """The chosen documents of which only a segment belongs to the part, in order."""
    cut_places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """The byte offset in the corpus at which each of them is cut."""
    keeps: Literal["before", "after"] = "before"
    """Which side of the cuts belongs to the part."""

    def pieces(self) -> Iterator[Piece]:
        """The documents in corpus order, in pieces of at most one megabyte."""
        for starts, stops in self._spans():
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                yield from self._document(start, stop)

    def sample(self, n_bytes: int, size: int = 1 << 16) -> Iterator[str]:
        """About `n_bytes` of the text, in evenly spaced windows of `size` bytes; the rest is not
        read.

        A window ends with its document, and drops partial characters at both ends.
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
        """The size of each document in bytes, in order, in batches of some thousands."""
        for starts, stops in self._spans():
            yield (stops - starts)[stops > starts]

    def by_source(self) -> list[tuple[int, int, int]]:
        """(source number, documents, segments among them) for each source with documents in the
        part."""
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
        """The start and end offsets of the documents in the corpus."""
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
    """Read all non-blank documents of the sources once into files in the directory.

    Raises the errors of reading, and WriteError if the directory cannot be written.
    """
    reading, marks = Reading(data, advance), MarkCounts()
    with writing(directory):
        writer, ranges = CorpusWriter(directory), list[tuple[int, int]]()
        for source in found:
            before = writer.n_documents
            for piece in pieces(source, reading):
                writer.add(piece)
                marks.add(piece)
            ranges.append((before, writer.n_documents))
            files.check_unchanged(source)
        ends = writer.finish()
    read = (writer.blank, reading.undecodable, tuple(ranges), marks.found)
    return Corpus(writer.text, ends, *read)


def everything(corpus: Corpus) -> Documents:
    """The whole corpus."""
    chosen = np.ones(corpus.n_documents, dtype=np.bool_)
    return Documents(corpus, chosen, corpus.n_documents, corpus.n_bytes)


class CorpusWriter:
    """Writes documents one after another into unnamed files in a directory, and removes those that
    turn out to be blank."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # The corpus keeps the text open, and both disappear when they are closed.
        self.text: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        self.offsets: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        self.ends: array[int] = array("q")
        self.n_documents = self.blank = 0
        self.position = self.start = 0
        self.empty = True

    def add(self, piece: Piece) -> None:
        """Write a part of a document."""
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
        """The end offsets of the documents, memory-mapped."""
        self._flush()
        self.text.flush()
        with self.offsets:
            self.offsets.flush()
            if not self.n_documents:
                return np.zeros(0, dtype=np.int64)
            return np.memmap(self.offsets, dtype=np.int64, mode="r", shape=(self.n_documents,))


AUTO_BYTES = 2_000_000
"""Maximum amount of text that `data.validation_fraction: auto` holds out."""

_FAIR = 8  # minimum number of whole documents for a fair sample of a stratum
_SEGMENT = 512  # bytes of a segment worth cutting from a document
_LEAST = 64  # minimum bytes of a segment; shorter documents are trained on whole
_MOST = 1 / 3  # maximum share of a stratum's documents that is drawn
_BORDERS = tuple(mark.encode() for mark in ("\n\n", "\r\n\r\n", "\n", "。", ". ", " "))


def held_out_share(n_bytes: int, fraction: float | str) -> float:
    """The fraction of this much text to hold out for a `data.validation_fraction`."""
    if fraction == "auto":
        return min(AUTO_SHARE, AUTO_BYTES / max(1, n_bytes))
    return float(fraction)


def split(corpus: Corpus, fraction: float | str, seed: int) -> tuple[Documents, Documents]:
    """Split a corpus into training and validation: each byte is in exactly one of them.

    Documents are grouped by file and size (a power of four). From a group of many documents,
    whole ones are drawn by the seed; if there are too few for a fair sample, the last segment of
    each is held out, cut at a paragraph, line, sentence or word. Every group contributes about the
    fraction of its bytes, and at most a third of its documents unless the fraction is larger. The
    corpus must not be empty.
    """
    wanted = held_out_share(corpus.n_bytes, fraction)
    sizes = np.diff(corpus.ends, prepend=0)
    rank = permutation(len(sizes), (seed, 0))(np.arange(len(sizes)))
    # The offset from which each document is held out; its end if nothing is.
    begins = np.array(corpus.ends)
    for group in _groups(corpus, sizes, wanted):
        if _is_cut(sizes[group], wanted):
            for document in group.tolist():
                if (n_bytes := wanted * int(sizes[document])) >= _LEAST:
                    _hold(corpus, begins, document, n_bytes)
        else:
            drawn = group[np.argsort(rank[group])]
            _draw(corpus, begins, drawn, sizes[drawn], wanted)
    if (begins == corpus.ends).all():
        longest = int(sizes.argmax())
        _hold(corpus, begins, longest, max(1.0, wanted * corpus.n_bytes))
    return _parts(corpus, sizes, begins)


def _groups(corpus: Corpus, sizes: NDArray[np.int64], wanted: float) -> Iterator[NDArray[np.int64]]:
    """The documents of each stratum; small documents of small strata share the last group."""
    enough = _FAIR / wanted
    stratum = np.log2(np.maximum(1, sizes)).astype(np.int64) // 2
    for number, (first, last) in enumerate(corpus.ranges):
        if last - first >= enough:
            stratum[first:last] += 64 * (number + 1)
    order = np.argsort(stratum, kind="stable")
    rest = []
    for group in np.split(order, np.flatnonzero(np.diff(stratum[order])) + 1):
        if len(group) >= enough or _is_cut(sizes[group], wanted):
            yield group
        else:
            rest.append(group)
    if rest:
        yield np.concatenate(rest)


def _is_cut(sizes: NDArray[np.int64], wanted: float) -> bool:
    """Whether segments are held out because a stratum has too few documents to draw whole ones."""
    n = len(sizes)
    return n < 3 or (n * wanted < _FAIR and wanted * float(sizes.mean()) >= _SEGMENT)


def _draw(
    corpus: Corpus,
    begins: NDArray[np.int64],
    group: NDArray[np.int64],
    sizes: NDArray[np.int64],
    share: float,
) -> None:
    """Hold out random documents of a stratum; if one makes up most of it, hold out a segment."""
    total = int(sizes.sum())
    wanted = share * total
    large, most = max(wanted / 4, _SEGMENT), min(2 * wanted, total - 1)
    held = 0
    fewest = max(1, int(len(group) * max(_MOST, share)))
    for document, size in zip(group[:fewest].tolist(), sizes[:fewest].tolist(), strict=True):
        if held >= wanted:
            break
        if size <= large and held + size <= most:
            begins[document] = corpus.start(document)
        else:
            _hold(corpus, begins, document, min(wanted - held, large))
        held += int(corpus.ends[document] - begins[document])


def _hold(corpus: Corpus, begins: NDArray[np.int64], document: int, n_bytes: float) -> None:
    """Hold out the last segment of a document, about this long."""
    start, end = corpus.start(document), int(corpus.ends[document])
    begins[document] = _cut(corpus, max(start + 1, end - max(1, int(n_bytes))), end)


def _parts(
    corpus: Corpus, sizes: NDArray[np.int64], begins: NDArray[np.int64]
) -> tuple[Documents, Documents]:
    held = np.asarray(corpus.ends - begins)
    cut = np.flatnonzero((held > 0) & (held < sizes))
    learned, chosen, n_bytes = held < sizes, held > 0, int(held.sum())
    return (
        Documents(corpus, learned, int(learned.sum()), corpus.n_bytes - n_bytes, cut, begins[cut]),
        Documents(corpus, chosen, int(chosen.sum()), n_bytes, cut, begins[cut], "after"),
    )


def _cut(corpus: Corpus, earliest: int, end: int) -> int:
    """The first place to cut after `earliest`: a paragraph, line, sentence or word break if there
    is one in the first half, else any place between two characters."""
    before = earliest - 1
    length = max(5, min((end - before) // 2, _WINDOW))
    window = os.pread(corpus.text.fileno(), min(length, end - before), before)
    for near in (window[: len(window) // 4], window):
        for mark in _BORDERS:
            if (found := near.find(mark)) >= 0 and before + found + len(mark) < end:
                return before + found + len(mark)
    # Bytes of the form 10xxxxxx continue a character.
    whole = (i for i in range(1, len(window)) if window[i] & 0xC0 != 0x80)
    return before + next(whole, len(window))
