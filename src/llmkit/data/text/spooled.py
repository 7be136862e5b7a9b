"""All documents of a data set on disk, as UTF-8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmkit.storage.joined import JoinedFiles


@dataclass(frozen=True)
class Corpus:
    """Concatenated documents on disk, which later passes read instead of the sources.

    They lie in an unnamed temporary file, which disappears when it is closed or the process is
    killed, or in the units of a large text.
    """

    text: JoinedFiles
    ends: NDArray[np.int64]
    """[documents], the byte offset of each document's end; memory-mapped."""
    blank: int
    """Number of documents without text, which were skipped."""
    undecodable: int
    """Number of invalid bytes that were replaced or ignored."""
    ranges: tuple[tuple[int, int], ...]
    """The range of documents of each source, as first and one past the last."""
    marks: dict[str, list[int]]
    """Document separators that were read as text, as counted by `MarkCounts`."""

    @property
    def n_documents(self) -> int:
        return len(self.ends)

    @property
    def n_bytes(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def close(self) -> None:
        """Release the disk space."""
        self.text.close()

    def start(self, document: int) -> int:
        """The byte offset of a document's start."""
        return int(self.ends[document - 1]) if document else 0

    def windows(self, document: int, size: int, count: int) -> str:
        """A document, or of a longer one `count` evenly spaced windows of `size` bytes, without
        partial characters at their ends."""
        start, end = self.start(document), int(self.ends[document])
        begins, length = [start], end - start
        if length > size * count:
            begins = np.linspace(start, end - size, count).astype(np.int64).tolist()
            length = size
        parts = (self.text.read_at(length, begin) for begin in begins)
        return "\n".join(part.decode(errors="ignore") for part in parts)
