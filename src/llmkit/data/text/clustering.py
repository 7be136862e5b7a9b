"""Balanced k-means: clusters of documents, none of which is much larger or smaller than others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from llmkit.data.text import clusters
from llmkit.data.text.clusters import Clusters

BOUNDS = 1 / 2, 2
"""The smallest and the largest size of a cluster, as multiples of the mean."""

VOCABULARY = 1 << 15
"""Maximum number of words, the most frequent ones."""

TELLING = 8
"""Number of words that describe a cluster."""

_STARTS = 4  # initial centroids that are tried
_ROUNDS = 50  # maximum number of times that centroids are computed again
_ADJUSTMENTS = 10  # maximum number of changes of a price in each, as a multiple of the clusters
_NAME = re.compile(r"[^\W\d_]{2,}")


def fit_clusters(
    texts: Iterable[str], sizes: NDArray[np.float64], n_clusters: int, seed: int
) -> Clusters | None:
    """Clusters of texts of these sizes, the largest first; None for texts that are too much alike.

    Spherical k-means of TF-IDF vectors, each weighted by the size of its text. In each round prices
    are set with which the sizes lie within BOUNDS (as far as whole texts allow), each text goes to
    the cluster of the highest cosine plus price, and centroids are computed again. Of several
    starts by k-means++ the one with the highest mean cosine counts. The same texts, sizes and seed
    give the same clusters. There must be at least as many texts as clusters.
    """
    # Imported here: it is slow to import, and few runs find domains.
    from sklearn.cluster import kmeans_plusplus
    from sklearn.feature_extraction.text import CountVectorizer

    counting = CountVectorizer(analyzer=clusters.words_of, max_features=VOCABULARY)
    counts, names = _shared(counting.fit_transform(texts), counting.get_feature_names_out())
    idf = clusters.idf_of(counts)
    vectors = clusters.tfidf(counts, idf)
    units = sparse.csr_matrix(sparse.diags(1 / clusters.lengths_of(vectors)) @ vectors)
    best: _Found | None = None
    for number in range(_STARTS):
        draw = np.random.RandomState(np.random.MT19937([seed, number]))
        start, _ = kmeans_plusplus(units, n_clusters, sample_weight=sizes, random_state=draw)
        found = _refined(vectors, units, sizes, start)
        if found.sizes.all() and (best is None or found.similarity > best.similarity):
            best = found
    if best is None:
        return None
    order = np.argsort(-best.sizes, kind="stable")
    centroids = best.centroids[order]
    return Clusters(tuple(names), idf, centroids, best.prices[order], _telling(names, centroids))


class _Found(NamedTuple):
    centroids: NDArray[np.float64]
    prices: NDArray[np.float64]
    sizes: NDArray[np.float64]
    similarity: float
    """The sum over all texts of their size times the cosine."""


def _shared(
    counts: sparse.csr_matrix, names: NDArray[np.str_]
) -> tuple[sparse.csr_matrix, NDArray[np.str_]]:
    """The words of several texts, since others tell nothing about any other; if there are some."""
    kept = np.bincount(counts.indices, minlength=len(names)) > 1
    return (counts[:, kept], names[kept]) if kept.any() else (counts, names)


def _refined(
    vectors: sparse.csr_matrix,
    units: sparse.csr_matrix,
    sizes: NDArray[np.float64],
    sums: NDArray[np.float64],
) -> _Found:
    """Clusters from the first centroids on; `units` are the vectors with length 1."""
    n_clusters = len(sums)
    prices, before = np.zeros(n_clusters), np.zeros(0)
    for _ in range(_ROUNDS):
        centroids = clusters.centroids_of(sums)
        similarities = clusters.similarities_of(vectors, centroids)
        prices = bounded_prices(similarities, sizes, prices)
        numbers = (similarities + prices).argmax(axis=1)
        if np.array_equal(numbers, before):
            break
        before = numbers
        sums = _sums(units, numbers, sizes, n_clusters)
    found = np.bincount(numbers, sizes, n_clusters).astype(np.float64)
    similarity = float(sizes @ similarities[np.arange(len(numbers)), numbers])
    return _Found(centroids, prices, found, similarity)


def bounded_prices(
    similarities: NDArray[np.float64], sizes: NDArray[np.float64], prices: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Prices with which the sizes of all clusters lie within BOUNDS, starting from `prices`.

    The cluster furthest outside gets the price nearest to its own that brings it to the bound,
    until all fit. This climbs the dual of the assignment with the highest total similarity within
    the bounds. Texts are not divided: a bound may be missed by the size of one, or of several that
    are alike.
    """
    prices, n_clusters = prices.copy(), len(prices)
    mean = float(sizes.sum()) / n_clusters
    low, high = (bound * mean for bound in BOUNDS)
    for _ in range(_ADJUSTMENTS * n_clusters):
        values = similarities + prices
        found = np.bincount(values.argmax(axis=1), sizes, n_clusters)
        outside = np.maximum(low - found, found - high)
        number = int(outside.argmax())
        if outside[number] <= 0:
            break
        values[:, number] = -np.inf
        margins = similarities[:, number] - values.max(axis=1)
        is_small = bool(found[number] < low)
        prices[number] = _price(margins, sizes, low if is_small else high, is_small)
    return prices


def _price(
    margins: NDArray[np.float64], sizes: NDArray[np.float64], bound: float, at_least: bool
) -> float:
    """The price at which the texts whose margin over other clusters is above it have a size of at
    least, or at most, the bound."""
    order = np.argsort(-margins, kind="stable")
    reached = np.cumsum(sizes[order])
    count = int(np.searchsorted(reached, bound, side="left" if at_least else "right")) + at_least
    count = max(1, min(count, len(order) - 1))
    return -float(margins[order[count - 1 : count + 1]].mean())


def _sums(
    vectors: sparse.csr_matrix, numbers: NDArray[np.int64], sizes: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """[clusters, words], the sum of the vectors in each cluster, weighted by size."""
    rows = np.arange(len(numbers))
    members = sparse.csr_matrix((sizes, (numbers, rows)), shape=(count, len(rows)))
    found: NDArray[np.float64] = (members @ vectors).toarray()
    return found


def _telling(
    names: NDArray[np.str_], centroids: NDArray[np.float64]
) -> tuple[tuple[str, ...], ...]:
    """For each cluster the words of at least two letters in which its centroid exceeds the largest
    of the others most; where there are none, other marks."""
    found = []
    for number, own in enumerate(centroids):
        excess = own - np.delete(centroids, number, axis=0).max(axis=0)
        order = [n for n in np.argsort(-excess, kind="stable").tolist() if own[n] > 0]
        named = [str(names[n]) for n in order if _NAME.fullmatch(str(names[n]))]
        found.append(tuple((named or [str(names[n]) for n in order])[:TELLING]))
    return tuple(found)
