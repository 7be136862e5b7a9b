"""Spool all documents of a data set to disk, in one file or in units."""

from __future__ import annotations

import tempfile
from array import array
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmkit.config.schema import DataConfig
from llmkit.data.readers import files, ranges
from llmkit.data.readers.decode import Reading
from llmkit.data.readers.files import Source
from llmkit.data.text.documents import MarkCounts, Piece, pieces
from llmkit.data.text.spooled import Corpus
from llmkit.errors import DataError
from llmkit.progress import Advance, Watch
from llmkit.storage import cache
from llmkit.storage.cache import writing
from llmkit.storage.joined import JoinedFiles
from llmkit.storage.units import Unit, Units, Workers

_DOCUMENTS_AT_ONCE = 1 << 16
SPOOL_FORMAT = 1
"""Format version; changes whenever the same sources would give other units."""

_TEXT, _ENDS = "text", "ends"


def spool(found: Sequence[Source], data: DataConfig, directory: Path, advance: Advance) -> Corpus:
    """Read all non-blank documents of the sources once into unnamed files in the directory.

    Raises the errors of reading, and WriteError if the directory cannot be written.
    """
    with writing(directory):
        writer = CorpusWriter(directory)
        facts = _read(found, data, writer, advance)
        ends = writer.finish()
    bounds = [0, *np.cumsum(facts["documents"]).tolist()]
    read = (facts["blank"], facts["undecodable"], tuple(pairwise(bounds)), facts["marks"])
    return Corpus(JoinedFiles([writer.text], [writer.position]), ends, *read)


def spool_units(
    found: Sequence[Source], data: DataConfig, store: Units, workers: Workers, watch: Watch
) -> Corpus:
    """The same for a large text: its units are read by any number of processes into a directory,
    which belongs to these sources and settings."""
    size = ranges.range_bytes(sum(source.n_bytes for source in found))
    groups = ranges.unit_sources(found, data, size)

    def read_unit(number: int, directory: Path, advance: Advance) -> dict[str, Any]:
        with (directory / _TEXT).open("w+b") as text, (directory / _ENDS).open("w+b") as ends:
            writer = CorpusWriter(directory, text, ends)
            facts = _read(groups[number], data, writer, advance)
            writer.finish()
        return {**facts, "bytes": writer.position}

    units = [
        Unit(
            cache.key(store.directory.name, [(part.begin, part.end) for part in group], number),
            sum(map(ranges.n_range_bytes, group)),
        )
        for number, group in enumerate(groups)
    ]
    with writing(store.directory):
        facts = store.make(units, read_unit, workers, watch, "reading")
        places = [store.path(unit) for unit in units]
        return _joined(found, groups, facts, places)


def _joined(
    found: Sequence[Source],
    groups: Sequence[Sequence[Source]],
    facts: Sequence[dict[str, Any]],
    places: Sequence[Path],
) -> Corpus:
    """The corpus of units in order."""
    sizes = [each["bytes"] for each in facts]
    ends, before = tempfile.TemporaryFile(dir=places[0].parent), 0  # noqa: SIM115
    for place, size in zip(places, sizes, strict=True):
        ends.write((np.fromfile(place / _ENDS, np.int64) + before).tobytes())
        before += size
    documents = dict.fromkeys((source.path for source in found), 0)
    marks: dict[str, list[int]] = {}
    for group, each in zip(groups, facts, strict=True):
        for part, number in zip(group, each["documents"], strict=True):
            documents[part.path] += number
        for mark, counts in each["marks"].items():
            marks[mark] = [a + b for a, b in zip(marks.get(mark, [0, 0]), counts, strict=True)]
    bounds = [0, *np.cumsum(list(documents.values())).tolist()]
    return Corpus(
        JoinedFiles([place / _TEXT for place in places], sizes),
        _mapped(ends, bounds[-1]),
        sum(each["blank"] for each in facts),
        sum(each["undecodable"] for each in facts),
        tuple(pairwise(bounds)),
        marks,
    )


def _read(
    found: Sequence[Source], data: DataConfig, writer: CorpusWriter, advance: Advance
) -> dict[str, Any]:
    """Writes the documents of sources, or of ranges of them, and returns what was found: the number
    of documents of each, blank ones, invalid bytes and separators."""
    marks, documents, undecodable = MarkCounts(), [], 0
    for source in found:
        before = writer.n_documents
        reading = Reading(ranges.settings_of_range(source, data), advance)
        try:
            for piece in pieces(source, reading):
                writer.add(piece)
                marks.add(piece)
        except DataError:
            if ranges.is_range(source):  # the error of the whole source names the line
                deque(pieces(ranges.whole_source(source), Reading(data, advance)), maxlen=0)
            raise
        documents.append(writer.n_documents - before)
        undecodable += reading.undecodable
        files.check_unchanged(source)
    return {
        "documents": documents,
        "blank": writer.blank,
        "undecodable": undecodable,
        "marks": marks.found,
    }


def _mapped(file: BinaryIO, n_documents: int) -> NDArray[np.int64]:
    """The offsets in a file, memory-mapped; closes the file."""
    with file:
        file.flush()
        if not n_documents:
            return np.zeros(0, dtype=np.int64)
        return np.memmap(file, dtype=np.int64, mode="r", shape=(n_documents,))


class CorpusWriter:
    """Writes documents one after another into two files, by default unnamed ones in a directory,
    and removes those that turn out to be blank."""

    def __init__(
        self, directory: Path, text: BinaryIO | None = None, offsets: BinaryIO | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # The corpus keeps the text open, and both disappear when they are closed.
        self.text: BinaryIO = text or tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        self.offsets: BinaryIO = offsets or tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        self.ends: array[int] = array("q")
        self.n_documents = self.blank = 0
        self.position = self.start = 0
        self.empty = True

    def add(self, piece: Piece) -> None:
        """Write a part of a document."""
        text, last = piece
        if self.empty and text and not text.isspace():
            self.empty = False
        if self.empty and last and self.position == self.start:
            self.blank += 1
            return
        encoded = text.encode()
        self.text.write(encoded)
        self.position += len(encoded)
        if last:
            self._end()

    def _end(self) -> None:
        if self.empty:
            self.blank += 1
            self.position = self.start
            self.text.seek(self.start)
            self.text.truncate()
            return
        self.n_documents += 1
        self.ends.append(self.position)
        if len(self.ends) == _DOCUMENTS_AT_ONCE:
            self._flush()
        self.start, self.empty = self.position, True

    def _flush(self) -> None:
        self.offsets.write(self.ends.tobytes())
        del self.ends[:]

    def finish(self) -> NDArray[np.int64]:
        """The end offsets of the documents, memory-mapped."""
        self._flush()
        self.text.flush()
        return _mapped(self.offsets, self.n_documents)
