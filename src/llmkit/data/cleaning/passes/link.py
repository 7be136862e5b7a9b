"""The second pass: which documents are copies of others, and the clusters that they form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.config.schema import CleanConfig
from llmkit.data.cleaning.passes.duplicates import Links, find_copies
from llmkit.data.cleaning.passes.scan import (
    COMPARABLE_FILE,
    HASHES_FILE,
    PLACES_FILE,
    VALUES_FILE,
    Collected,
    collected,
)
from llmkit.data.cleaning.passes.signatures import Signatures
from llmkit.progress import Advance

LARGEST_CLUSTERS = 10
"""Number of clusters that are described."""

_MEMBERS = 5


def link_documents(
    directories: Sequence[Path],
    before: Sequence[Mapping[int, int]],
    held_out: int,
    settings: CleanConfig,
    directory: Path,
    advance: Advance,
) -> dict[str, Any]:
    """Writes for each document that the scans left which one it is a copy of; the first
    `held_out` are compared only. `before` has for each scan the documents of each source in earlier
    ones. Returns the clusters."""
    near = settings.near_duplicate is not None
    everything = collected(directories, before, near, directory)
    links = find_copies(
        everything.signatures, settings.exact, settings.near_duplicate, held_out, advance
    )
    np.save(directory / "copied.npy", links.copied)
    np.save(directory / "kept.npy", links.kept())
    np.save(directory / "kinds.npy", links.kinds)
    np.save(directory / "estimates.npy", links.estimates)
    facts = {
        **_clusters(links, everything.places),
        "held_out": _held_out(everything, links, held_out, settings, advance),
    }
    for name in (HASHES_FILE, VALUES_FILE, COMPARABLE_FILE):
        (directory / name).unlink()
    return facts


class ReadLinks:
    """The links that `link_documents` wrote, memory-mapped."""

    def __init__(self, directory: Path) -> None:
        self.copied, self.kept, self.kinds, self.estimates = (
            np.load(directory / f"{name}.npy", mmap_mode="r")
            for name in ("copied", "kept", "kinds", "estimates")
        )
        self.places = np.fromfile(directory / PLACES_FILE, np.int64).reshape(-1, 2)

    def place(self, number: int) -> tuple[int, int]:
        """The source and the row of a document."""
        source, row = self.places[number].tolist()
        return source, row


def _clusters(links: Links, places: NDArray[np.int64]) -> dict[str, Any]:
    kept = links.kept()
    copies = np.flatnonzero(links.kinds)
    first, sizes = np.unique(kept[copies], return_counts=True)
    order = np.lexsort((first, -sizes))[:LARGEST_CLUSTERS]
    return {
        "clusters": len(first),
        "sizes": {str(size + 1): n for size, n in sorted(Counter(sizes.tolist()).items())},
        "largest": [
            {
                "kept": places[number].tolist(),
                "documents": int(size) + 1,
                "copies": [
                    [*places[copy].tolist(), round(float(links.estimates[copy]), 4)]
                    for copy in copies[kept[copies] == number][:_MEMBERS].tolist()
                ],
            }
            for number, size in zip(first[order].tolist(), sizes[order].tolist(), strict=True)
        ],
    }


def _held_out(
    everything: Collected, links: Links, held_out: int, settings: CleanConfig, advance: Advance
) -> dict[str, Any]:
    """For each source that is only compared: its documents, the copies among them all, and the
    documents of the other sources that were removed for one of its."""
    if not held_out:
        return {}
    hashes, values, comparable = everything.signatures
    part = Signatures(hashes[:held_out], values[:held_out], comparable[:held_out])
    within = find_copies(part, settings.exact, settings.near_duplicate, 0, advance)
    kept = links.kept()
    removed = np.flatnonzero((links.kinds > 0) & (kept < held_out))
    removed = removed[removed >= held_out]
    own = everything.places[:held_out, 0]
    other = everything.places[kept[removed], 0]
    return {
        str(number): {
            "documents": int((own == number).sum()),
            "copies_within": int(((own == number) & (within.kinds > 0)).sum()),
            "copies_in_training": int((other == number).sum()),
        }
        for number in np.unique(own).tolist()
    }
