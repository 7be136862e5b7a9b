"""Hash the token ids that a model was trained on, to detect evaluation on training data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from transformers import PreTrainedTokenizerFast

from llmkit.data.text.token_file import TokenFile
from llmkit.models.control_tokens import text_only
from llmkit.progress import Advance, Watch
from llmkit.storage import atomic, outputs

FINGERPRINTS = "fingerprints.safetensors"

SEGMENT = 32
"""Tokens per segment: long enough that two texts do not share one by chance."""

MOST = 1 << 20
"""Maximum number of hashes kept per kind; beyond it, those divisible by a power of two."""

NOTABLE = 0.01
"""Share of common documents or segments from which on an overlap is reported."""

_SPARSE = 16  # segments begin at every token; about one in this many is kept
_BUFFERED = 8  # times MOST hashes of segments are held while a text is read
_CHUNK = 1 << 20
_ROWS_AT_ONCE = 4096

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Fingerprints:
    """Hashes of documents (or rows) and of the 32-token segments in them."""

    kind: str
    """`text` or `rows`."""
    documents: Hashes
    """[documents], in document order when new; sorted and unique when saved."""
    segments: Hashes
    every_document: int = 1
    """Only hashes divisible by this power of two are kept, as a sample."""
    every_segment: int = _SPARSE

    def kept(self) -> Fingerprints:
        """The fingerprints as a run saves them: sorted, and at most `MOST` of each kind."""
        documents, every_document = _sampled(self.documents, self.every_document, MOST)
        segments, every_segment = _sampled(self.segments, self.every_segment, MOST)
        return Fingerprints(self.kind, documents, segments, every_document, every_segment)

    def joined(self, earlier: Fingerprints | None) -> Fingerprints:
        """The union with the fingerprints of the run that the model comes from."""
        if earlier is None or earlier.kind != self.kind:
            return self
        return Fingerprints(
            self.kind,
            np.concatenate([self.documents, earlier.documents]),
            np.concatenate([self.segments, earlier.segments]),
            max(self.every_document, earlier.every_document),
            max(self.every_segment, earlier.every_segment),
        )


@dataclass(frozen=True)
class Overlap:
    """How much of a text or of rows a model was trained on."""

    matched: int
    """Number of sampled documents or rows."""
    compared: int
    total: int
    segments: float
    """Share of the segments that are common."""

    @property
    def is_notable(self) -> bool:
        """Whether results on this text must mention the overlap."""
        return self.matched >= NOTABLE * max(1, self.compared) or self.segments >= NOTABLE

    def sentence(self, what: str) -> str:
        """`240 of these 250 rows (96%)`, and the share of the text if segments were compared."""
        share = self.matched / max(1, self.compared)
        about = "" if self.compared == self.total else "about "
        count = (
            f"{about}{round(share * self.total):,} of these {self.total:,} {what}s ({share:.0%})"
        )
        text = f"{self.segments:.0%} of the text"
        if not self.matched:
            return text
        return f"{count} and {text}" if self.segments >= NOTABLE else count


def of_training_text(files: Sequence[TokenFile], watch: Watch) -> Fingerprints:
    """The fingerprints of token streams, with their progress."""
    passes = 2  # over the tokens
    with watch("hashing the training text", passes * sum(len(file.ids) for file in files)) as some:
        return of_tokens(files, some)


def of_tokens(files: Iterable[TokenFile], advance: Advance = lambda n: None) -> Fingerprints:
    """The fingerprints of token streams, without the special tokens around documents."""
    files, every = list(files), _SPARSE
    documents = np.concatenate([document_hashes(file, advance) for file in files])
    segments = np.zeros(0, np.uint64)
    for some, _ in chain.from_iterable(segment_hashes(file, advance) for file in files):
        segments = np.concatenate([segments, some[some % np.uint64(every) == 0]])
        if len(segments) > _BUFFERED * MOST:
            segments, every = _sampled(segments, every, _BUFFERED // 2 * MOST)
    return Fingerprints("text", documents, segments, every_segment=every)


def of_rows(
    rows: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerFast | None
) -> Fingerprints:
    """The fingerprints of rows, from the ids of their texts, or without a tokenizer from the texts
    themselves. White space around a text is ignored."""
    hashes = [_hash_of(row) for row in as_seen(rows, tokenizer)]
    return Fingerprints("rows", np.array(hashes, dtype=np.uint64), np.zeros(0, np.uint64))


def as_seen(
    rows: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerFast | None
) -> list[tuple[str, ...]]:
    """The ids of each text as one string, so that rows that the model reads as the same are equal.
    White space around a text is ignored."""
    stripped = [tuple(text.strip() for text in row) for row in rows]
    if tokenizer is None:
        return stripped
    backend = text_only(tokenizer)
    flat = [text for row in stripped for text in row]
    seen: list[str] = []
    for first in range(0, len(flat), _ROWS_AT_ONCE):
        some = flat[first : first + _ROWS_AT_ONCE]
        encodings = backend.encode_batch_fast(some, add_special_tokens=False)
        seen += ["".join(map(chr, _printable(each.ids))) for each in encodings]
    texts = iter(seen)
    return [tuple(next(texts) for _ in row) for row in stripped]


def overlap(part: Fingerprints, known: Fingerprints) -> Overlap:
    """The overlap of a part with known fingerprints; both must come from the same tokenizer."""
    documents = max(part.every_document, known.every_document)
    mine = part.documents[part.documents % np.uint64(documents) == 0]
    every = max(part.every_segment, known.every_segment)
    segments = part.segments[part.segments % np.uint64(every) == 0]
    found = np.isin(segments, known.segments)
    return Overlap(
        int(np.isin(mine, known.documents).sum()),
        len(mine),
        len(part.documents),
        float(found.mean()) if len(found) else 0.0,
    )


def seen_rows(part: Fingerprints, known: Fingerprints) -> NDArray[np.bool_] | None:
    """[rows], whether each row of a new part is known; None if only a sample is known."""
    if max(part.every_document, known.every_document) > 1:
        return None
    return np.isin(part.documents, known.documents)


def seen_documents(
    file: TokenFile, known: Fingerprints, advance: Advance = lambda n: None
) -> NDArray[np.bool_] | None:
    """[documents], whether each document is known, or one of its segments; None if too few of the
    known documents or segments were kept to tell."""
    if known.every_document > 1 or known.every_segment > _SPARSE:
        return None
    seen = np.isin(document_hashes(file, advance), known.documents)
    for hashes, documents in segment_hashes(file, advance):
        seen[documents[np.isin(hashes, known.segments)]] = True
    return seen


def write(directory: Path, fingerprints: Fingerprints) -> None:
    """Save fingerprints in a run directory; raises WriteError."""
    kept = fingerprints.kept()
    tensors = {"documents": kept.documents, "segments": kept.segments}
    notes = {
        "kind": kept.kind,
        "every_document": str(kept.every_document),
        "every_segment": str(kept.every_segment),
    }
    atomic.replace_bytes(directory / FINGERPRINTS, save(tensors, notes))


def read_fingerprints(model: str) -> Fingerprints | None:
    """The fingerprints of the run that a model (a run, final model or checkpoint) belongs to; None
    if there are none."""
    place = Path(model).expanduser()
    for directory in (place, *place.resolve().parents[:2]):
        if (directory / outputs.RUN).is_file() and (directory / FINGERPRINTS).is_file():
            with suppress(SafetensorError, OSError, KeyError, ValueError):  # damaged: unknown
                return _read(directory / FINGERPRINTS)
    return None


def _read(path: Path) -> Fingerprints:
    with safe_open(path, "numpy") as file:
        notes = file.metadata()
        return Fingerprints(
            notes["kind"],
            file.get_tensor("documents"),
            file.get_tensor("segments"),
            int(notes["every_document"]),
            int(notes["every_segment"]),
        )


def document_hashes(file: TokenFile, advance: Advance = lambda n: None) -> Hashes:
    """[documents], the hash of each document's ids."""
    found = np.zeros(len(file.starts), np.uint64)
    for ids, document, place in _chunks(file, advance):
        values = _mixed(ids * np.uint64(0x9E3779B97F4A7C15) + place * np.uint64(0xD1B54A32D192ED03))
        inside = (place > 0) & (ids != np.uint64(file.closing))
        values[~inside] = 0
        begins = np.flatnonzero(np.diff(document, prepend=-1))
        found[document[begins]] += np.add.reduceat(values, begins)
    return _mixed(found)


def segment_hashes(
    file: TokenFile, advance: Advance = lambda n: None
) -> Iterator[tuple[Hashes, NDArray[np.int64]]]:
    """The hashes of segments within documents that are divisible by 16, and the number of the
    document of each."""
    for ids, document, place in _chunks(file, advance, SEGMENT - 1):
        values, step, factor = _mixed(ids), 1, 0x9E3779B97F4A7C15
        while step < SEGMENT and len(values) > step:
            values = values[:-step] + np.uint64(factor) * values[step:]
            step, factor = 2 * step, factor * factor % (1 << 64)
        if step < SEGMENT:
            continue
        n = len(values)
        whole = (place[:n] > 0) & (document[:n] == document[SEGMENT - 1 :][:n])
        values, document = _mixed(values[whole]), document[:n][whole]
        kept = values % np.uint64(_SPARSE) == 0
        yield values[kept], document[kept]


def _chunks(
    file: TokenFile, advance: Advance, more: int = 0
) -> Iterator[tuple[Hashes, NDArray[np.int64], NDArray[np.uint64]]]:
    """Chunks of ids, with each token's document number and position in the document; every chunk
    also has the first `more` tokens of the next."""
    for first in range(0, len(file.ids), _CHUNK):
        ids = np.array(file.ids[first : first + _CHUNK + more], dtype=np.uint64)
        index = np.arange(first, first + len(ids))
        document = np.searchsorted(file.starts, index, side="right") - 1
        yield ids, document, (index - file.starts[document]).astype(np.uint64)
        advance(min(_CHUNK, len(file.ids) - first))


def _mixed(values: Hashes) -> Hashes:
    """The finalizer of splitmix64 (Steele et al. 2014): equal values stay equal, others are
    spread."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def _sampled(hashes: Hashes, every: int, most: int) -> tuple[Hashes, int]:
    """The different hashes, sorted: at most `most`, those divisible by the returned number."""
    chosen = np.unique(hashes)
    while len(chosen := chosen[chosen % np.uint64(every) == 0]) > most:
        every *= 2
    return chosen, every


def _printable(ids: Sequence[int]) -> Iterator[int]:
    """Ids as code points that are not surrogates."""
    return (id if id < 0xD800 else id + 0x800 for id in ids)


def _hash_of(row: tuple[str, ...]) -> int:
    text = repr([(len(each), each) for each in row]).encode("utf-8", "backslashreplace")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
