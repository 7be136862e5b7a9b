"""Clusters of documents by their words, and which of them a document belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from llmkit.errors import DataError
from llmkit.storage import atomic, cache

DOMAINS = "domains.json"
"""The file of the clusters in a run and in its model, with which every branch finds the same
domains."""
CLUSTERS_FORMAT = 1
"""Format version; changes whenever the same text would give other clusters."""

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese, which are written without spaces."""
_WORD = re.compile(rf"[^\W\d_{_UNSPACED}]+|[{_UNSPACED}]|\d|_|[^\w\s]")
_PAIR = re.compile(rf"(?=([{_UNSPACED}]{{2}}))")

_COUNT_UNIT, _IDF_UNIT, _CENTROID_UNIT = 2.0**6, 2.0**6, 2.0**20
"""Weights are multiples of 1 / unit: sums of them are exact in any order, so that a document is in
the same cluster on any machine."""


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, and each digit and punctuation mark; in scripts without
    spaces each character, and each pair of neighbours."""
    return _WORD.findall(text.lower()) + _PAIR.findall(text)


@dataclass(frozen=True)
class Clusters:
    """Centroids of documents, and a price of each that keeps its size within bounds."""

    vocabulary: tuple[str, ...]
    idf: NDArray[np.float64]
    """[words], ln((1 + documents) / (1 + documents with the word)) + 1."""
    centroids: NDArray[np.float64]
    """[clusters, words], of length 1 but for rounding."""
    prices: NDArray[np.float64]
    """[clusters], added to the similarity of a document."""
    telling: tuple[tuple[str, ...], ...]
    """For each cluster, the words that set it apart, most telling first."""

    def __len__(self) -> int:
        """Number of clusters."""
        return len(self.prices)

    def similarities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """[texts, clusters], the cosine of the TF-IDF vector of each text and each centroid; 0 for
        a text without a known word."""
        return similarities_of(tfidf(self._count(texts), self.idf), self.centroids)

    def numbers(self, similarities: NDArray[np.float64]) -> NDArray[np.uint16]:
        """[texts], the number of the cluster of each text: of the highest similarity plus price,
        and of equal ones the first."""
        found: NDArray[np.uint16] = (similarities + self.prices).argmax(axis=1).astype(np.uint16)
        return found

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all of the above."""
        return cache.key(self._content())

    @cached_property
    def _count(self) -> Callable[[Sequence[str]], sparse.csr_matrix]:
        # Imported here: it is slow to import, and few runs find domains.
        from sklearn.feature_extraction.text import CountVectorizer

        made = CountVectorizer(analyzer=words_of, vocabulary=list(self.vocabulary))
        counts: Callable[[Sequence[str]], sparse.csr_matrix] = made.transform
        return counts

    def _content(self) -> dict[str, Any]:
        units = {"idf": _IDF_UNIT, "centroids": _CENTROID_UNIT}
        whole = {
            name: np.rint(getattr(self, name) * unit).astype(np.int64).tolist()
            for name, unit in units.items()
        }
        telling = [list(each) for each in self.telling]
        return {
            "format": CLUSTERS_FORMAT,
            "telling": telling,
            "prices": self.prices.tolist(),
            "vocabulary": list(self.vocabulary),
            **whole,
        }

    def write(self, directory: Path) -> None:
        """Writes the file of the clusters into a directory; raises WriteError."""
        text = json.dumps(self._content(), ensure_ascii=False, separators=(",", ":"))
        atomic.replace_text(directory / DOMAINS, text + "\n")


def read_clusters(directory: Path) -> Clusters | None:
    """The clusters in a directory; None if it has none.

    Raises DataError if their file is damaged, or written by a newer llmkit.
    """
    path = directory / DOMAINS
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] > CLUSTERS_FORMAT:
            raise DataError(
                "it was written by a newer llmkit", where=str(path), next="update llmkit"
            )
        return _clusters(found)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(
            f"the file of the domains is damaged ({error})",
            where=str(path),
            next="restore it from another copy of the model, or train the seed again",
        ) from error


def _clusters(found: Mapping[str, Any]) -> Clusters:
    """The clusters of what their file states; raises an error if its parts do not fit together."""
    vocabulary, prices = tuple(found["vocabulary"]), np.array(found["prices"], float)
    idf, centroids = np.array(found["idf"], float), np.array(found["centroids"], float)
    telling = tuple(map(tuple, found["telling"]))
    if len(set(vocabulary)) != len(vocabulary) or idf.shape != (len(vocabulary),):
        raise ValueError("its words are not those of its weights")
    if centroids.shape != (len(prices), len(idf)) or len(telling) != len(prices):
        raise ValueError("its parts have different numbers of domains")
    return Clusters(vocabulary, idf / _IDF_UNIT, centroids / _CENTROID_UNIT, prices, telling)


def idf_of(counts: sparse.csr_matrix) -> NDArray[np.float64]:
    """[words], the inverse document frequency of each word in these documents."""
    n_documents, n_words = counts.shape
    having = np.bincount(counts.indices, minlength=n_words)
    return rounded(np.log((1 + n_documents) / (1 + having)) + 1, _IDF_UNIT)


def centroids_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1 in the direction of these sums; a row of zeros stays so."""
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return rounded(sums / np.where(lengths, lengths, 1), _CENTROID_UNIT)


def tfidf(counts: sparse.csr_matrix, idf: NDArray[np.float64]) -> sparse.csr_matrix:
    """The square root of each count times the idf of the word."""
    found = counts.astype(np.float64)
    found.data = rounded(np.sqrt(found.data), _COUNT_UNIT) * idf[found.indices]
    return found


def lengths_of(vectors: sparse.csr_matrix) -> NDArray[np.float64]:
    """[rows], the Euclidean length of each row; 1 for a row of zeros."""
    squares = np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel()
    return np.sqrt(np.where(squares, squares, 1))


def similarities_of(
    vectors: sparse.csr_matrix, centroids: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[rows, clusters], the cosine of each TF-IDF vector and each centroid."""
    found: NDArray[np.float64] = (vectors @ centroids.T) / lengths_of(vectors)[:, None]
    return found


def rounded(values: NDArray[np.float64], unit: float) -> NDArray[np.float64]:
    """The values as multiples of 1 / unit."""
    whole: NDArray[np.float64] = np.rint(values * unit) / unit
    return whole
