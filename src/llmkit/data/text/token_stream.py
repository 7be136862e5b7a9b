"""A stream of token ids: how documents are framed in it, and its files, which are read as one."""

from __future__ import annotations

import hashlib
import os
import shutil
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.models.tokenizer import Framing

_MAPPED = 256
"""Maximum number of files that are mapped at once."""

_CHUNK = 1 << 22


@dataclass(frozen=True)
class TokenBatch:
    """The ids of consecutive parts of documents."""

    ids: list[list[int]]
    last: list[bool]
    """Whether each part ends its document."""
    inside: bool
    """Whether the first part continues a document."""
    n_bytes: int
    characters: int


class TokenStream:
    """Adds the special tokens around documents, and tracks the position in the stream."""

    def __init__(self, framing: Framing, dtype: np.dtype[Any], continues: bool) -> None:
        self.framing, self.dtype = framing, dtype
        self.continues = continues
        """Whether the stream begins in another file, whose last id opens a document here."""
        self.n_tokens = self.max_id = 0

    def add(self, batch: TokenBatch) -> tuple[NDArray[np.unsignedinteger[Any]], array[int]]:
        """The tokens that a batch adds to the stream, and the starts of documents among them; -1 is
        the last id of the file before."""
        flat: list[int] = []
        starts = array("q")
        shared = self.framing.opening == self.framing.closing
        inside = batch.inside
        for ids, last in zip(batch.ids, batch.last, strict=True):
            if not inside:
                if not shared or not (self.continues or self.n_tokens + len(flat)):
                    flat.append(self.framing.opening)
                starts.append(self.n_tokens + len(flat) - 1)
            flat += ids
            if last:
                flat.append(self.framing.closing)
            inside = not last
        tokens = np.array(flat, dtype=self.dtype)
        self.n_tokens += len(tokens)
        self.max_id = max(self.max_id, int(tokens.max(initial=0)))
        return tokens, starts


class ShardedIds:
    """A stream of ids in several files, in order: indexed like a one-dimensional array, in time
    that hardly depends on the number of files."""

    def __init__(self, paths: Sequence[Path], lengths: Sequence[int], dtype: str) -> None:
        self.paths, self.dtype = paths, np.dtype(dtype)
        self.ends = np.cumsum(lengths, dtype=np.int64)
        self._mapped = lru_cache(_MAPPED)(self._map)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._between(start, stop) if step == 1 else self[np.arange(start, stop, step)]
        places = np.asarray(index)
        if places.dtype == np.bool_:
            places = np.flatnonzero(places)
        places = np.where(places < 0, places + len(self), places)
        if places.size and not 0 <= places.min() <= places.max() < len(self):
            raise IndexError(f"places {places.min()} to {places.max()} of {len(self)} ids")
        numbers = np.searchsorted(self.ends, places, side="right")
        ids = np.empty(places.shape, self.dtype)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            ids[here] = self._mapped(number)[places[here] - self._begin(number)]
        return ids[()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def _between(self, start: int, stop: int) -> NDArray[Any]:
        parts = [np.empty(0, self.dtype)]
        while start < stop:
            number = int(np.searchsorted(self.ends, start, side="right"))
            begin = self._begin(number)
            parts.append(self._mapped(number)[start - begin : stop - begin])
            start = int(self.ends[number])
        return parts[1] if len(parts) == 2 else np.concatenate(parts)

    def _begin(self, number: int) -> int:
        return int(self.ends[number - 1]) if number else 0

    def _map(self, number: int) -> NDArray[Any]:
        return np.memmap(self.paths[number], dtype=self.dtype, mode="r")


def shard_name(number: int) -> str:
    """The file of the ids of a shard."""
    return f"ids-{number:05}"


def join_shards(
    directory: Path, places: Sequence[Path], lengths: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Puts the files of units into the directory of a set: the ids as they are, in one file for
    each unit, and `starts` and `document_bytes` in one file.

    Returns the size and the sha256 of the three files that one unit of everything would have.
    """
    ids = hashlib.sha256()
    for number, place in enumerate(places):
        target = directory / shard_name(number)
        try:
            os.link(place / "ids", target)
        except OSError:  # a file system without hard links
            shutil.copyfile(place / "ids", target)
        with target.open("rb") as file:
            while chunk := file.read(_CHUNK):
                ids.update(chunk)
    before = 0
    with (
        (directory / "starts").open("wb") as starts,
        (directory / "document_bytes").open("wb") as n,
    ):
        for place, length in zip(places, lengths, strict=True):
            starts.write((np.fromfile(place / "starts", np.int64) + before).tobytes())
            n.write((place / "document_bytes").read_bytes())
            before += length
    n_bytes = sum((place / "ids").stat().st_size for place in places)
    return {
        "document_bytes": _described(directory / "document_bytes"),
        "ids": {"size": n_bytes, "sha256": ids.hexdigest()},
        "starts": _described(directory / "starts"),
    }


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "size": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }
