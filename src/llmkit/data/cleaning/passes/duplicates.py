"""Which documents are copies of an earlier one, exactly or nearly."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from llmkit.data.cleaning.passes.signatures import (
    BANDS,
    Signatures,
    band_keys,
    estimated_overlap,
)
from llmkit.progress import Advance

EXACT_COPY, NEAR_COPY = 1, 2

DocumentNumbers = NDArray[np.int64]


@dataclass(frozen=True)
class Links:
    """For each document the earlier one that is kept for it."""

    roots: DocumentNumbers
    """[documents], the number of an earlier document in the same cluster; its own if it is kept."""
    copied: DocumentNumbers
    """[documents], the number of the document that it is most like; its own if it is kept."""
    kinds: NDArray[np.uint8]
    """[documents], EXACT_COPY, NEAR_COPY, or 0 for a document that is kept."""
    estimates: NDArray[np.float32]
    """[documents], the estimated overlap with `copied`; 1 for exact copies."""

    def kept(self) -> DocumentNumbers:
        """[documents], the number of the document that is kept for each: the earliest of its
        cluster."""
        kept = self.roots
        while (further := kept[kept]).tobytes() != kept.tobytes():
            kept = further
        return kept


def find_copies(
    found: Signatures, exact: bool, limit: float | None, held_out: int, advance: Advance
) -> Links:
    """The documents that are equal to an earlier one, or that are in a cluster with it: those that
    pairs with an estimated overlap of at least `limit` connect (None: equal ones only).

    The earliest document of a cluster is kept. The first `held_out` documents are compared with the
    others and always kept. The search is repeated until it finds nothing, so that what is kept
    holds no further copies. Memory is about 70 bytes a document.
    """
    numbers = np.arange(len(found), dtype=np.int64)
    links = Links(
        numbers.copy(),
        numbers.copy(),
        np.zeros(len(found), np.uint8),
        np.ones(len(found), np.float32),
    )
    if exact:
        _link_equal(found, links, held_out)
    advance(1)
    while limit is not None:
        left = numbers[(links.kinds == 0) & found.comparable]
        pairs = _similar_pairs(found.values, left, limit, held_out, advance)
        if not _link_clusters(links, *pairs, held_out):
            break
    return links


def _link_equal(found: Signatures, links: Links, held_out: int) -> None:
    order = np.lexsort((found.hashes[:, 1], found.hashes[:, 0]))  # stable: earliest first
    hashes = found.hashes[order]
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (hashes[1:] != hashes[:-1]).any(axis=1)
    first = order[begins][np.cumsum(begins) - 1]
    copies = (first != order) & (order >= held_out)
    links.roots[order[copies]] = links.copied[order[copies]] = first[copies]
    links.kinds[order[copies]] = EXACT_COPY


def _similar_pairs(
    values: NDArray[np.uint32], left: DocumentNumbers, limit: float, held_out: int, advance: Advance
) -> tuple[DocumentNumbers, DocumentNumbers, NDArray[np.float32]]:
    """Pairs of an earlier and a later document with their estimated overlap, by the later one."""
    tried = np.zeros(0, np.uint64)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))]
    for band in range(BANDS):
        pairs = np.unique(np.concatenate([*_candidates(values, left, band)]))
        pairs = pairs[~np.isin(pairs, tried, assume_unique=True)]
        tried = np.union1d(tried, pairs)
        second = (pairs >> np.uint64(32)).astype(np.int64)
        first = (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
        open_ones = second >= held_out
        first, second = first[open_ones], second[open_ones]
        estimates = estimated_overlap(values, first, second)
        _release(values)
        alike = estimates >= np.float32(limit) - _ROUNDING
        parts.append((first[alike], second[alike], estimates[alike]))
        advance(1)
    first, second, estimates = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.lexsort((first, second))
    return first[order], second[order], estimates[order]


_ROUNDING = np.float32(1e-6)


def _candidates(
    values: NDArray[np.uint32], left: DocumentNumbers, band: int
) -> Iterator[NDArray[np.uint64]]:
    """Each document with the first, and with the one before it, of those with the same key: the
    later number in the upper half."""
    yield np.zeros(0, np.uint64)
    keys = np.zeros(len(left), np.uint64)
    for start in range(0, len(left), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        keys[part] = band_keys(values[left[part]], band)
        _release(values)
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], left[order]
    begins = np.ones(len(keys), np.bool_)
    begins[1:] = keys[1:] != keys[:-1]
    first = places[begins][np.cumsum(begins) - 1] if len(keys) else places
    later = np.flatnonzero(~begins)
    for earlier in (first[later], places[later - 1]):
        yield places[later].astype(np.uint64) << np.uint64(32) | earlier.astype(np.uint64)


_AT_ONCE = 1 << 16


def _release(values: NDArray[np.uint32]) -> None:
    """Drops the pages of a mapped file from this process; the system may keep them cached."""
    mapped = getattr(values, "_mmap", None)
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


def _link_clusters(
    links: Links,
    first: DocumentNumbers,
    second: DocumentNumbers,
    estimates: NDArray[np.float32],
    held_out: int,
) -> int:
    """Links each document to the earliest one that pairs connect it with; returns how many were
    linked."""
    n = len(links.kinds)
    graph = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(n, n))
    n_clusters, clusters = connected_components(graph, directed=False)
    earliest = np.full(n_clusters, n, np.int64)
    np.minimum.at(earliest, clusters, np.arange(n))
    own, other = np.concatenate([first, second]), np.concatenate([second, first])
    order = np.lexsort((other, -np.concatenate([estimates, estimates]), own))
    numbers, places = np.unique(own[order], return_index=True)
    best = order[places]
    copies = (numbers >= held_out) & (earliest[clusters[numbers]] != numbers)
    numbers, best = numbers[copies], best[copies]
    links.roots[numbers] = earliest[clusters[numbers]]
    links.copied[numbers] = other[best]
    links.estimates[numbers] = np.concatenate([estimates, estimates])[best]
    links.kinds[numbers] = NEAR_COPY
    return len(numbers)
