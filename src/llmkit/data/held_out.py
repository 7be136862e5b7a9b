"""Which text of a corpus is held out: a fair sample of every file and of every size of document."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llmkit.data.corpus import Corpus, Documents
from llmkit.data.order import permutation
from llmkit.data.splits import AUTO_SHARE

AUTO_BYTES = 2_000_000
"""The most text that `data.validation_fraction: auto` holds out."""

_FAIR = 8  # whole documents that are a fair sample of their stratum
_SEGMENT = 512  # bytes of a segment that is worth cutting from a document
_LEAST = 64  # bytes of a segment; a document too short for it is trained on whole
_MOST = 1 / 3  # share of the documents of a stratum that is drawn at most
_WINDOW = 1 << 20
_BORDERS = tuple(mark.encode() for mark in ("\n\n", "\r\n\r\n", "\n", "。", ". ", " "))


def share(corpus: Corpus, fraction: float | str) -> float:
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
    wanted = share(corpus, fraction)
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
