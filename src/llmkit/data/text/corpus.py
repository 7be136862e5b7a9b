"""Parts of a corpus: all of it, training and held-out text, and ranges of these."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmkit.data.examples.order import permutation
from llmkit.data.records.splits import AUTO_SHARE
from llmkit.data.text.documents import NOWHERE, Piece, Rule
from llmkit.data.text.spooled import Corpus

_WINDOW = 1 << 20
_BESIDE = 8  # bytes, of which at least one is a whole character
_DOCUMENTS_AT_ONCE = 1 << 16


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

    def pieces(self, begin: int = 0, end: int | None = None) -> Iterator[Piece]:
        """The documents in corpus order, in pieces of at most one megabyte; those of a range of the
        corpus may begin or end inside a document."""
        end = self.corpus.n_bytes if end is None else end
        for starts, stops in self._spans(begin, end):
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                yield from self._document(max(begin, start), min(end, stop), stop <= end)

    def ranges(self, rule: Rule, size: int) -> list[tuple[int, int]]:
        """Ranges of the corpus with about `size` bytes of the part each, in order: they end at the
        end of a document, or where the rule allows a cut."""
        borders, before, wanted = [0], 0, size
        for starts, stops in self._spans():
            ends = before + np.cumsum(stops - starts)
            while len(ends) and wanted < min(int(ends[-1]), self.n_bytes):
                number = int(np.searchsorted(ends, wanted, side="right"))
                start, stop = int(starts[number]), int(stops[number])
                shift = start - (int(ends[number]) - (stop - start))
                border = self._border(start, stop, wanted + shift, rule)
                if border > borders[-1] and border - shift < self.n_bytes:
                    borders.append(border)
                wanted = (max(wanted, border - shift) // size + 1) * size
            before = int(ends[-1]) if len(ends) else before
        return list(pairwise([*borders, self.corpus.n_bytes]))

    def is_inside(self, place: int) -> bool:
        """Whether a range that begins at a place of the corpus begins inside a document."""
        for starts, _ in self._spans(place, self.corpus.n_bytes):
            if len(starts):
                return bool(starts[0] < place)
        return False

    def text_hash(self) -> str:
        """The sha256 of the text of all documents, one after another."""
        digest = hashlib.sha256()
        for starts, stops in self._spans():
            begins = starts[np.append(True, starts[1:] != stops[:-1])[: len(starts)]]
            ends = stops[np.append(starts[1:] != stops[:-1], True)[: len(starts)]]
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
                for place in range(begin, end, _WINDOW):
                    digest.update(self.corpus.text.read_at(min(_WINDOW, end - place), place))
        return digest.hexdigest()

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

    def sizes(self, begin: int = 0, end: int | None = None) -> Iterator[NDArray[np.int64]]:
        """The size in bytes of each document that begins in a range, in order, in batches of some
        thousands."""
        for starts, stops in self._spans(begin, self.corpus.n_bytes if end is None else end):
            yield (stops - starts)[(stops > starts) & (starts >= begin)]

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
        return self.corpus.text.read_at(length, start).decode(errors="ignore")

    def _document(self, start: int, stop: int, is_end: bool) -> Iterator[Piece]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        while start < stop:
            chunk = self.corpus.text.read_at(min(_WINDOW, stop - start), start)
            start += len(chunk)
            yield Piece(decoder.decode(chunk), start == stop and is_end)

    def _border(self, start: int, stop: int, place: int, rule: Rule) -> int:
        """The first place to cut a document at or after a place in it; its end if there is none."""
        if place == start or rule is NOWHERE:
            return start if place == start else stop
        while place < stop:
            # A rule also looks at the characters beside the place.
            low = max(start, place - _BESIDE)
            window = self.corpus.text.read_at(min(_WINDOW, stop - low), low)
            partial = next(n for n, byte in enumerate(window) if byte & 0xC0 != 0x80)
            low, window = low + partial, window[partial:]
            text = codecs.getincrementaldecoder("utf-8")().decode(window)
            first = len(window[: place - low].decode(errors="ignore"))
            if match := rule.search(text, max(1, first)):
                return low + len(text[: match.start()].encode())
            place = low + len(text.encode())
        return stop

    def _spans(
        self, begin: int = 0, end: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The start and end offsets of the documents that lie in a range of the corpus, at least in
        part."""
        ends = self.corpus.ends
        low = int(np.searchsorted(ends, begin, side="right"))
        past = len(ends) if end is None else int(np.searchsorted(ends, end, side="left")) + 1
        for first in range(low, min(past, len(ends)), _DOCUMENTS_AT_ONCE):
            stops = np.array(ends[first : min(past, first + _DOCUMENTS_AT_ONCE)])
            starts = np.concatenate(([self.corpus.start(first)], stops[:-1]))
            low, high = np.searchsorted(self.cut_documents, (first, first + len(stops)))
            bounds = stops if self.keeps == "before" else starts
            bounds[self.cut_documents[low:high] - first] = self.cut_places[low:high]
            here = self.chosen[first : first + len(stops)] & (stops > begin)
            if end is not None:
                here &= starts < end
            yield starts[here], stops[here]


def everything(corpus: Corpus) -> Documents:
    """The whole corpus."""
    chosen = np.ones(corpus.n_documents, dtype=np.bool_)
    return Documents(corpus, chosen, corpus.n_documents, corpus.n_bytes)


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
    window = corpus.text.read_at(min(length, end - before), before)
    for near in (window[: len(window) // 4], window):
        for mark in _BORDERS:
            if (found := near.find(mark)) >= 0 and before + found + len(mark) < end:
                return before + found + len(mark)
    # Bytes of the form 10xxxxxx continue a character.
    whole = (i for i in range(1, len(window)) if window[i] & 0xC0 != 0x80)
    return before + next(whole, len(window))
