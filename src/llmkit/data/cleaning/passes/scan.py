"""The first pass: the documents of some files pass the stages, and their signatures are kept."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit.config.schema import CleanConfig, DataConfig
from llmkit.data.cleaning.encodings import FileEncoding, encoding_of
from llmkit.data.cleaning.lines import LineCounts, hashes_of_lines
from llmkit.data.cleaning.passes.rows_file import RowSink, writing_rows
from llmkit.data.cleaning.passes.signatures import BAND_ROWS, BANDS, Signatures, signatures_of
from llmkit.data.cleaning.passes.sourced import SourcedText, sourced_texts
from llmkit.data.cleaning.stages import Passed, Stages
from llmkit.data.readers import files
from llmkit.data.readers.decode import Reading
from llmkit.data.readers.files import Source
from llmkit.data.readers.ranges import settings_of_range
from llmkit.progress import Advance

ROWS_FILE, PLACES_FILE, LINES_FILE = "rows.jsonl.zst", "places.bin", "lines.bin"
HASHES_FILE, VALUES_FILE, COMPARABLE_FILE = "hashes.bin", "values.bin", "comparable.bin"
CANDIDATES = 200
"""Number of frequent lines that each unit records."""

_BATCH = 256  # documents whose signatures are computed together
_BATCH_CHARACTERS = 1 << 21


@dataclass(frozen=True)
class NumberedSource:
    """A source with its number among all, in the order in which documents are kept."""

    number: int
    source: Source
    is_held_out: bool
    """Whether its documents are only compared with the others."""
    encoding: FileEncoding | None = None
    """How the whole file is decoded; None before that is known."""


class Collected(NamedTuple):
    """All documents that the stages left, in order."""

    signatures: Signatures
    places: NDArray[np.int64]
    """[documents, 2], the number of the source and the row of each."""


@dataclass
class _Found:
    """What a scan counts."""

    sources: dict[int, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    n_bytes: int = 0

    def spent(self, name: str, began: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def opened(each: NumberedSource, data: DataConfig) -> tuple[FileEncoding, DataConfig]:
    """A source with the encoding by which it is read, if there is one, and how to read it."""
    found = each.encoding or encoding_of(each.source, data)
    if found.lenient:
        data = data.changed(errors="replace")
    return found, data if found.source is None else settings_of_range(found.source, data)


def scan_lines(
    sources: Sequence[NumberedSource], data: DataConfig, directory: Path, advance: Advance
) -> dict[str, Any]:
    """Writes the hashes of the lines of these sources, one for each document that a line is in."""
    hashes: list[int] = []
    for each in sources:
        (source, _, _), own = opened(each, data)
        if source is not None and not each.is_held_out:
            for document in sourced_texts(source, Reading(own, advance)):
                hashes += hashes_of_lines(document.text.split("\n"))
    np.sort(np.array(hashes, np.uint64)).tofile(directory / LINES_FILE)
    return {}


def scan_documents(
    sources: Sequence[NumberedSource],
    data: DataConfig,
    settings: CleanConfig,
    boilerplate: Collection[int],
    directory: Path,
    advance: Advance,
) -> dict[str, Any]:
    """Writes the documents after the stages, and the signatures of those that are left, into the
    directory; returns counts."""
    found, stages, lines = _Found(), Stages(settings, boilerplate), LineCounts()
    languages: Counter[str] = Counter()
    with ExitStack() as stack:
        write = stack.enter_context(writing_rows(directory / ROWS_FILE))
        outputs = [stack.enter_context((directory / name).open("wb")) for name in _ARRAYS]
        batch: list[tuple[NumberedSource, SourcedText, Passed]] = []
        characters = 0
        for each, document in _documents(sources, data, found, write, advance):
            passed = stages.passed(document.text)
            if passed.language and not each.is_held_out:
                languages[passed.language] += 1
            batch.append((each, document, passed))
            characters += len(passed.text)
            if len(batch) == _BATCH or characters > _BATCH_CHARACTERS:
                _write_batch(batch, settings, write, outputs, found, lines)
                batch, characters = [], 0
        _write_batch(batch, settings, write, outputs, found, lines)
    return {
        "sources": {str(number): counts for number, counts in found.sources.items()},
        "documents": (directory / COMPARABLE_FILE).stat().st_size,
        "languages": dict(languages),
        "lines": lines.common(CANDIDATES),
        "seconds": {**found.seconds, **stages.seconds},
        "bytes": found.n_bytes,
    }


_ARRAYS = (HASHES_FILE, VALUES_FILE, COMPARABLE_FILE, PLACES_FILE)


def _documents(
    sources: Sequence[NumberedSource],
    data: DataConfig,
    found: _Found,
    write: RowSink,
    advance: Advance,
) -> Iterator[tuple[NumberedSource, SourcedText]]:
    """The documents of the sources; a source that cannot be decoded is written as removed."""
    for each in sources:
        counts = found.sources[each.number] = {"documents": 0, "bytes": 0, "undecodable": 0}
        (source, _, _), own = opened(each, data)
        if source is None:
            size = each.source.n_bytes
            counts |= {"documents": 1, "bytes": size}
            row = {"source": each.number, "row": 1, "bytes": size, "text": ""}
            write(row | {"reason": "decode", "value": "no encoding found", "limit": "utf-8"})
            continue
        reading = Reading(own, advance)
        documents = sourced_texts(source, reading)
        while document := _next(documents, found):
            counts["documents"] += 1
            counts["bytes"] += len(document.text.encode())
            found.n_bytes += len(document.text.encode())
            yield each, document
        counts["undecodable"] = reading.undecodable
        files.check_unchanged(each.source)


def _next(documents: Iterator[SourcedText], found: _Found) -> SourcedText | None:
    began = time.perf_counter()
    document = next(documents, None)
    found.spent("read", began)
    return document


def _write_batch(
    batch: Sequence[tuple[NumberedSource, SourcedText, Passed]],
    settings: CleanConfig,
    write: RowSink,
    outputs: Sequence[IO[bytes]],
    found: _Found,
    lines: LineCounts,
) -> None:
    """Writes documents with what the stages found, and the signatures of those that are left."""
    left = [each for each in batch if not each[2].removal]
    texts = [passed.text for _, _, passed in left]
    began = time.perf_counter()
    signatures = signatures_of(texts, settings.near_duplicate is not None)
    places = np.array([(each.number, document.row) for each, document, _ in left], np.int64)
    for file, values in zip(outputs, (*signatures, places), strict=True):
        file.write(np.ascontiguousarray(values).tobytes())
    found.spent("signatures", began)
    began = time.perf_counter()
    for each, _, passed in left:
        if not each.is_held_out:
            lines.add(passed.text.split("\n"))
    found.spent("lines", began)
    began = time.perf_counter()
    for each, document, passed in batch:
        if not each.is_held_out:
            write(_row(each, document, passed))
    found.spent("write", began)


def _row(each: NumberedSource, document: SourcedText, passed: Passed) -> dict[str, Any]:
    row: dict[str, Any] = {
        "source": each.number,
        "row": document.row,
        "bytes": len(document.text.encode()),
        "text": passed.text,
        "column": document.column,
        "values": document.values,
    }
    if passed.edits:
        row["edits"] = [[edit.stage, edit.value, edit.bytes_added] for edit in passed.edits]
    if passed.removal or passed.edits:
        row["hash"] = text_hash(document.text)
    if removal := passed.removal:
        row |= {"reason": removal.stage, "value": removal.value, "limit": removal.limit}
        row["text"] = document.text
    return row


def text_hash(text: str) -> str:
    """A hash of a text, by which a trace names it."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


def collected(
    directories: Sequence[Path], before: Sequence[Mapping[int, int]], near: bool, at: Path
) -> Collected:
    """What several scans left, one after another, on disk below `at`. `before` has for each scan
    the documents of each source that are in earlier ones."""
    for name in _ARRAYS:
        with (at / name).open("wb") as whole:
            for directory, earlier in zip(directories, before, strict=True):
                if name == PLACES_FILE:
                    whole.write(_places(directory, earlier).tobytes())
                    continue
                with (directory / name).open("rb") as part:
                    shutil.copyfileobj(part, whole, 1 << 20)
    n = (at / COMPARABLE_FILE).stat().st_size
    values = np.zeros((n, 0), np.uint32)
    if near and n:
        values = np.memmap(at / VALUES_FILE, np.uint32, "r", shape=(n, BANDS * BAND_ROWS))
    return Collected(
        Signatures(
            np.fromfile(at / HASHES_FILE, "<u8").reshape(n, 2),
            values,
            np.fromfile(at / COMPARABLE_FILE, np.bool_),
        ),
        np.fromfile(at / PLACES_FILE, np.int64).reshape(n, 2),
    )


def _places(directory: Path, earlier: Mapping[int, int]) -> NDArray[np.int64]:
    """[documents, 2], the places of a scan, with rows that count from the start of the source."""
    places = np.fromfile(directory / PLACES_FILE, np.int64).reshape(-1, 2)
    for number, rows in earlier.items():
        places[places[:, 0] == number, 1] += rows
    return places
