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
                files.check_unchanged(source)
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


AUTO_BYTES = 2_000_000
"""The most text that `data.validation_fraction: auto` holds out."""

_FAIR = 8  # whole documents that are a fair sample of their stratum
_SEGMENT = 512  # bytes of a segment that is worth cutting from a document
_LEAST = 64  # bytes of a segment; a document too short for it is trained on whole
_MOST = 1 / 3  # share of the documents of a stratum that is drawn at most
_BORDERS = tuple(mark.encode() for mark in ("\n\n", "\r\n\r\n", "\n", "。", ". ", " "))


def _share(corpus: Corpus, fraction: float | str) -> float:
    """The share of the text that a `data.validation_fraction` holds out."""
    if fraction == "auto":
        return min(AUTO_SHARE, AUTO_BYTES / max(1, corpus.n_bytes))
    return float(fraction)


def split(corpus: Corpus, fraction: float | str, seed: int) -> tuple[Documents, Documents]:
    """The training and the validation part: each byte of the corpus is in exactly one of them.

    Documents are grouped by file and size (a power of four). A group of many documents gives whole
    ones, drawn by the seed; where there are too few for a fair sample, each document gives its
    last segment, cut at a paragraph, line, sentence or word. Every group gives about the fraction
    of its bytes, and never more than a third of its documents unless the fraction is larger.
    The corpus has documents.
    """
    wanted = _share(corpus, fraction)
    sizes = np.diff(corpus.ends, prepend=0)
    rank = permutation(len(sizes), (seed, 0))(np.arange(len(sizes)))
    # From where on each document is held out; its end where nothing is.
    begins = np.array(corpus.ends)
    for group in _groups(corpus, sizes, wanted):
        if _is_cut(sizes[group], wanted):
            for document in group.tolist():
                if (n_bytes := wanted * int(sizes[document])) >= _LEAST:
                    _hold(corpus, begins, document, n_bytes)
        else:
            _draw(corpus, begins, group[np.argsort(rank[group])], wanted)
    if (begins == corpus.ends).all():
        longest = int(sizes.argmax())
        _hold(corpus, begins, longest, max(1.0, wanted * corpus.n_bytes))
    return _parts(corpus, sizes, begins)


def _groups(corpus: Corpus, sizes: NDArray[np.int64], wanted: float) -> Iterator[NDArray[np.int64]]:
    """The documents of each stratum; small ones of strata too small to sample share the last."""
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
    """Whether each document of a stratum gives a segment: they are too few to draw whole ones."""
    n = len(sizes)
    return n < 3 or (n * wanted < _FAIR and wanted * float(sizes.mean()) >= _SEGMENT)


def _draw(
    corpus: Corpus, begins: NDArray[np.int64], group: NDArray[np.int64], share: float
) -> None:
    """Hold out drawn documents of a stratum; of one that alone would be most of it, a segment."""
    sizes = [int(corpus.ends[document]) - corpus.start(document) for document in group.tolist()]
    wanted = share * sum(sizes)
    large, most = max(wanted / 4, _SEGMENT), min(2 * wanted, sum(sizes) - 1)
    held = 0
    fewest = max(1, int(len(group) * max(_MOST, share)))
    for document, size in list(zip(group.tolist(), sizes, strict=True))[:fewest]:
        if held >= wanted:
            break
        if size <= large and held + size <= most:
            begins[document] = corpus.start(document)
        else:
            _hold(corpus, begins, document, min(wanted - held, large))
        held += int(corpus.ends[document] - begins[document])


def _hold(corpus: Corpus, begins: NDArray[np.int64], document: int, n_bytes: float) -> None:
    """Hold out the last segment of a document, of about this size."""
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
    """The first good place from `earliest` on: after a paragraph, a line, a sentence or a word,
    whatever comes in the first half; else between two characters."""
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
