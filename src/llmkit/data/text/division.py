"""Divide a corpus into domains: find clusters of its documents, assign each, and part the text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.text import clustering
from llmkit.data.text.clusters import Clusters
from llmkit.data.text.corpus import everything
from llmkit.data.text.documents import MarkCounts
from llmkit.data.text.spooled import Corpus
from llmkit.data.text.spooling import CorpusWriter
from llmkit.progress import Watch
from llmkit.reporting.format import within_columns
from llmkit.storage.cache import writing
from llmkit.storage.joined import JoinedFiles

SAMPLE = 1 << 14
"""Maximum number of documents that clusters are found in; all of them are assigned."""

_WINDOW, _WINDOWS = 2048, 8
"""Bytes and number of the windows of a long document that its words are counted in."""
_BATCH = 1 << 20  # characters whose words are counted at once
_PLAIN = 100  # bytes of a document worth showing as an example
_WIDTH = 60  # columns of an example


@dataclass(frozen=True)
class Assignment:
    """The domain of each document, and what is in each domain."""

    numbers: NDArray[np.uint16]
    """[documents]"""
    found: list[dict[str, Any]]
    """For each domain `documents`, `bytes` and the beginning of its most typical document as
    `example`."""


def find_clusters(corpus: Corpus, n_clusters: int, seed: int, watch: Watch) -> Clusters | None:
    """Clusters of the documents of a corpus, weighted by bytes; None if it has too few.

    Of more than SAMPLE documents, those at evenly spaced bytes are read, which are the same
    however the files were read.
    """
    sizes = np.diff(corpus.ends, prepend=0).astype(np.float64)
    chosen = np.arange(len(sizes))
    if len(sizes) > SAMPLE:
        places = (np.arange(SAMPLE) + 0.5) * (corpus.n_bytes / SAMPLE)
        hit = np.searchsorted(corpus.ends, places.astype(np.int64), side="right")
        chosen, times = np.unique(hit, return_counts=True)
        sizes = times.astype(np.float64)
    if len(chosen) < n_clusters:
        return None
    with watch("finding domains", len(chosen)) as advance:
        texts = _texts(corpus, chosen.tolist(), advance)
        return clustering.fit_clusters(texts, sizes, n_clusters, seed)


def assign(corpus: Corpus, clusters: Clusters, watch: Watch) -> Assignment:
    """The cluster of each document of a corpus."""
    with watch("assigning documents to domains", corpus.n_documents) as advance:
        texts = _texts(corpus, range(corpus.n_documents), advance)
        return _assigned(corpus, clusters, texts)


def _assigned(corpus: Corpus, clusters: Clusters, found: Iterable[str]) -> Assignment:
    numbers = np.zeros(corpus.n_documents, np.uint16)
    best = np.full(len(clusters), -np.inf)
    typical = np.zeros(len(clusters), np.int64)
    sizes, first = np.diff(corpus.ends, prepend=0), 0
    for texts in _batches(found):
        similarities = clusters.similarities(texts)
        here = slice(first, first + len(texts))
        numbers[here] = clusters.numbers(similarities)
        # A longer document is a better example.
        values = similarities + (sizes[here] >= _PLAIN)[:, None]
        values[numbers[here][:, None] != np.arange(len(clusters))] = -np.inf
        highest = values.argmax(axis=0)
        better = values[highest, np.arange(len(clusters))] > best
        typical[better] = first + highest[better]
        best = np.maximum(best, values.max(axis=0))
        first += len(texts)
    documents = np.bincount(numbers, minlength=len(clusters))
    n_bytes = np.bincount(numbers, sizes, len(clusters))
    return Assignment(
        numbers,
        [
            {
                "documents": int(documents[number]),
                "bytes": int(n_bytes[number]),
                "example": _opening(corpus, int(typical[number])) if documents[number] else "",
            }
            for number in range(len(clusters))
        ],
    )


def divide(
    corpus: Corpus,
    numbers: NDArray[np.uint16],
    n_domains: int,
    directory: Path,
    watch: Watch,
) -> list[Corpus]:
    """A corpus for each domain, with its documents in their order.

    Blank documents and invalid bytes, which belong to none, are counted in the first.
    """
    with writing(directory), watch("dividing the text", corpus.n_bytes) as advance:
        writers = [CorpusWriter(directory) for _ in range(n_domains)]
        marks = [MarkCounts() for _ in range(n_domains)]
        document = 0
        for piece in everything(corpus).pieces():
            number = int(numbers[document])
            writers[number].add(piece)
            marks[number].add(piece)
            document += piece.last
            advance(len(piece.text.encode()))
        ends = [writer.finish() for writer in writers]
    ranges = [list[tuple[int, int]]() for _ in range(n_domains)]
    before = np.zeros(n_domains, np.int64)
    for first, last in corpus.ranges:
        after = before + np.bincount(numbers[first:last], minlength=n_domains)
        for own, begin, end in zip(ranges, before.tolist(), after.tolist(), strict=True):
            own.append((begin, end))
        before = after
    return [
        Corpus(
            JoinedFiles([writers[number].text], [writers[number].position]),
            ends[number],
            0 if number else corpus.blank,
            0 if number else corpus.undecodable,
            tuple(ranges[number]),
            marks[number].found,
        )
        for number in range(n_domains)
    ]


def _texts(
    corpus: Corpus, documents: Iterable[int], advance: Callable[[int], None]
) -> Iterator[str]:
    for document in documents:
        yield corpus.windows(document, _WINDOW, _WINDOWS)
        advance(1)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, size = list[str](), 0
    for text in texts:
        batch.append(text)
        size += len(text) + 1
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _opening(corpus: Corpus, document: int) -> str:
    """The beginning of a document in one line of a terminal."""
    return within_columns(" ".join(corpus.windows(document, _WINDOW, _WINDOWS).split()), _WIDTH)
