"""Several files that are read as if they were one."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

_OPEN = 128
"""Maximum number of files that are open at once."""


class JoinedFiles:
    """Files one after another: open ones, and paths that are opened when they are needed."""

    def __init__(self, files: Sequence[BinaryIO | Path], sizes: Sequence[int]) -> None:
        self.files = files
        self.ends = np.cumsum(sizes, dtype=np.int64)
        self._open: OrderedDict[int, int] = OrderedDict()

    def read_at(self, length: int, start: int) -> bytes:
        """At most this many bytes from an offset."""
        parts = []
        while length > 0 and start < (int(self.ends[-1]) if len(self.ends) else 0):
            number = int(np.searchsorted(self.ends, start, side="right"))
            begin = int(self.ends[number - 1]) if number else 0
            wanted = min(length, int(self.ends[number]) - start)
            part = os.pread(self._descriptor(number), wanted, start - begin)
            if not part:
                raise OSError(f"{self.files[number]} is shorter than it was")
            parts.append(part)
            length, start = length - len(part), start + len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Closes all files."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        for file in self.files:
            if not isinstance(file, Path):
                file.close()

    def _descriptor(self, number: int) -> int:
        file = self.files[number]
        if not isinstance(file, Path):
            return file.fileno()
        if number not in self._open:
            self._open[number] = os.open(file, os.O_RDONLY)
            if len(self._open) > _OPEN:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(number)
        return self._open[number]
