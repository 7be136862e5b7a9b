"""What documents are compared by: a hash of the text, and MinHash values of its runs of words."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.comparing import compared_words, runs_of_words

BANDS, BAND_ROWS = 20, 6
"""Documents whose MinHash values are equal in all rows of a band are compared."""

LEAST_WORDS = 10
"""Minimum number of words of a document that is compared for near duplicates; in a shorter one a
single word decides."""

_SEED = 1


class Signatures(NamedTuple):
    """[documents]; what duplicates are found by."""

    hashes: NDArray[np.uint64]
    """[documents, 2], a hash of the whole text."""
    values: NDArray[np.uint32]
    """[documents, BANDS * BAND_ROWS], MinHash values."""
    comparable: NDArray[np.bool_]
    """[documents], whether it has LEAST_WORDS."""

    def __len__(self) -> int:
        return len(self.hashes)


def algorithm() -> str:
    """The version of the MinHash values; those of different versions cannot be compared."""
    import rensa

    return f"rensa {rensa.RMinHash.ALGORITHM_VERSION}, {BANDS}x{BAND_ROWS}, seed {_SEED}"


def signatures_of(texts: Sequence[str], near: bool) -> Signatures:
    """The signatures of texts; without `near` only hashes."""
    digests = b"".join(blake2b(text.encode(), digest_size=16).digest() for text in texts)
    hashes = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
    values = np.zeros((len(texts), BANDS * BAND_ROWS if near else 0), np.uint32)
    comparable = np.zeros(len(texts), np.bool_)
    if near and texts:
        import rensa

        words = [compared_words(text) for text in texts]
        comparable = np.array([len(each) >= LEAST_WORDS for each in words])
        runs = [runs_of_words(each) if len(each) >= LEAST_WORDS else [] for each in words]
        rows = rensa.RMinHash.digests_from_token_sets(runs, BANDS * BAND_ROWS, _SEED)
        values = np.array(rows, dtype=np.uint32).reshape(len(texts), -1)
    return Signatures(hashes, values, comparable)


def band_keys(values: NDArray[np.uint32], band: int) -> NDArray[np.uint64]:
    """[documents], a hash of the MinHash values of each document in a band."""
    keys = np.full(len(values), 0x9E3779B97F4A7C15, np.uint64)
    for row in range(band * BAND_ROWS, (band + 1) * BAND_ROWS):
        keys ^= values[:, row]
        keys *= np.uint64(0xFF51AFD7ED558CCD)
        keys ^= keys >> np.uint64(32)
    return keys


def estimated_overlap(
    values: NDArray[np.uint32], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float32]:
    """[pairs], the estimated share of the runs of words that two documents have in common
    (Jaccard), by equal MinHash values; its standard error is at most 0.046."""
    found = np.zeros(len(first), np.float32)
    for start in range(0, len(first), _PAIRS):
        part = slice(start, start + _PAIRS)
        found[part] = (values[first[part]] == values[second[part]]).mean(axis=1)
    return found


_PAIRS = 1 << 14
