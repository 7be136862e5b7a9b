"""Lines that occur often: within a document, or in many documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

WORDS_OF_LINE = 3
"""Minimum number of words in a line that is counted over documents."""

_MOST = 1 << 19  # distinct lines that are held before rare ones are forgotten


def repeated_share(lines: list[str]) -> float:
    """The share of the characters of a text that lie in lines that occurred earlier in it.

    White space at both ends of a line does not count.
    """
    stripped = [line for line in map(str.strip, lines) if line]
    once = set(stripped)
    if len(once) == len(stripped):
        return 0.0
    total = sum(map(len, stripped))
    return 1 - sum(map(len, once)) / total


class LineCounts:
    """Counts in how many documents each line occurs, in bounded memory."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.least = 1
        """A line in fewer documents may have been forgotten."""

    def add(self, lines: list[str]) -> None:
        """Count the lines of a document."""
        self.counts.update({line for line in map(str.strip, lines) if line})
        while len(self.counts) > _MOST:
            self.least += 1
            self.counts = Counter({k: n for k, n in self.counts.items() if n >= self.least})

    def common(self, most: int) -> list[tuple[str, int]]:
        """The lines of WORDS_OF_LINE words or more in several documents, the most frequent
        first."""
        found = ((line, n) for line, n in self.counts.items() if n > 1 and _has_words(line))
        return sorted(found, key=lambda each: (-each[1], each[0]))[:most]


def line_hash(line: str) -> int:
    """A 64-bit hash of a line."""
    return int.from_bytes(blake2b(line.encode(), digest_size=8).digest(), "little")


def hashes_of_lines(lines: list[str]) -> set[int]:
    """The hashes of the different lines of a document that have words enough to be counted."""
    return {line_hash(line) for line in {*map(str.strip, lines)} if line and _has_words(line)}


def frequent(hashes: list[NDArray[np.uint64]], documents: int) -> set[int]:
    """The hashes that occur this often in the arrays, which hold one entry for each document of a
    line; a range of hashes at a time, in bounded memory."""
    found: set[int] = set()
    for part in range(_PARTS):
        low, high = np.uint64(part << 60), np.uint64(((part + 1) << 60) - 1)
        some = [
            each[np.searchsorted(each, low) : np.searchsorted(each, high, "right")]
            for each in hashes
        ]
        values, counts = np.unique(
            np.concatenate([*some, np.zeros(0, np.uint64)]), return_counts=True
        )
        found.update(values[counts >= documents].tolist())
    return found


_PARTS = 16


def without_lines(lines: list[str], hashes: Collection[int]) -> tuple[str, list[str]]:
    """The text without the lines of these hashes, and the lines that were taken out."""
    kept, taken = [], []
    for line in lines:
        stripped = line.strip()
        if stripped and _has_words(stripped) and line_hash(stripped) in hashes:
            taken.append(stripped)
        else:
            kept.append(line)
    return "\n".join(kept), taken


def _has_words(line: str) -> bool:
    return len(line.split(None, WORDS_OF_LINE - 1)) >= WORDS_OF_LINE
