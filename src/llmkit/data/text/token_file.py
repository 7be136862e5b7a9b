"""Token files: documents as one stream of token ids on disk, written once, then memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llmkit.data.readers import ranges
from llmkit.data.text.corpus import Documents
from llmkit.data.text.documents import LONGEST, NOWHERE, Piece, Rule, cut, exact_rule
from llmkit.data.text.token_stream import (
    ShardedIds,
    TokenBatch,
    TokenStream,
    join_shards,
    shard_name,
)
from llmkit.models.control_tokens import renamed
from llmkit.models.tokenizer import Framing
from llmkit.progress import Advance, Say, Watch
from llmkit.storage import cache
from llmkit.storage.units import ALONE, Unit, Units, Workers

FORMAT = 5
"""Format version; changes whenever the same text would give different files."""

Places = NDArray[np.int64]
"""Places in a token stream; the token at place p + 1 is what a model predicts at place p."""

_BATCH = 1 << 20  # characters encoded at once, which takes some tenths of a second
_PART = 16  # fixed cost of a part, in characters
_PROOF = 1 << 18  # bytes of text used to verify a cutting rule
_NOTES = (
    "n_bytes",
    "opening",
    "closing",
    "max_id",
    "blank",
    "undecodable",
    "lost",
    "by_source",
    "marks",
)


@dataclass(frozen=True)
class TokenFile:
    """A stream of token ids with the start of each document.

    If one id opens and closes documents (E), the stream is `E a b c E d e E`: the id between two
    documents ends the first and begins the second. With two ids (B, E) it is `B a b c E B d e E`. A
    document starts at its opening id.
    """

    ids: NDArray[np.unsignedinteger[Any]] | ShardedIds
    """[tokens], uint16 or uint32; those of a large text lie in several files."""
    starts: NDArray[np.int64]
    """[documents], the index of each document's start in `ids`."""
    document_bytes: NDArray[np.int64]
    """[documents], the number of UTF-8 bytes of each document."""
    n_bytes: int
    """Total number of UTF-8 bytes."""
    opening: int
    closing: int
    max_id: int
    """The highest id in the stream."""
    blank: int
    """Number of documents without text in the sources, which were skipped."""
    undecodable: int
    """Number of invalid bytes in the sources that were replaced or ignored."""
    lost: float
    """Share of letters and digits without a token, measured on a sample."""
    fingerprint: str
    """The sha256 of all of the above."""
    by_source: list[list[int]] = field(default_factory=list)
    """(source number, documents, segments among them) for each source."""
    marks: dict[str, list[int]] = field(default_factory=dict)
    """Document separators that were read as text: occurrences, and those that fill a line."""
    reused: bool = False
    path: Path | None = None
    characters: int | None = None
    """Total number of characters; None in files written before they were counted."""
    text_hash: str | None = None
    """The sha256 of the text itself, whatever the tokenizer; None in files written before."""


def tokenize(
    name: str,
    documents: Callable[[], Documents],
    tokenizer: PreTrainedTokenizerFast,
    framing: Framing,
    watch: Watch,
    say: Say,
    workers: Workers = ALONE,
) -> TokenFile:
    """The token file of this name from the cache, or made from the documents.

    Each document is encoded as a whole, without special tokens; special tokens written out in the
    text stay text. A large text is made in units, by any number of processes. Raises WriteError if
    the cache cannot be written.
    """
    making = _Making(name, documents, tokenizer, framing, watch, say, workers)
    if not cache.entry_path(name).is_dir():
        making.make_units()
    try:
        entry = cache.open_or_build(name, making.build, watch, say)
    finally:
        making.close()
    return _opened(entry)


class TokenEncoder:
    """Encodes texts with the tokenizer's backend: all cores, no special tokens, no truncation."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, sample: Iterable[str]) -> None:
        # A copy: the caller's tokenizer keeps its settings.
        settings = json.loads(renamed(tokenizer).to_str())
        self.opening = _backend(settings)
        parts = ("normalizer", "pre_tokenizer")
        self.continuing = _backend(settings | {name: _bare(settings[name]) for name in parts})
        vocabulary = self.opening.get_vocab(with_added_tokens=True)
        self.highest = max(vocabulary.values())
        tokens = self.opening.get_added_tokens_decoder().values()
        added = [token.content for token in tokens if not token.special]
        texts = list(sample)
        self.rule: Rule = exact_rule(self.encode, texts, vocabulary, added)
        self.lost = self._lost(texts)

    def encode(self, parts: Sequence[Piece], inside: bool = False) -> list[list[int]]:
        """The ids of each part, in order; `inside` says that the first continues a document."""
        ids: list[list[int]] = [[]] * len(parts)
        continues = [inside, *(not part.last for part in parts[:-1])]
        for backend, wanted in ((self.opening, False), (self.continuing, True)):
            places = [place for place, each in enumerate(continues) if each is wanted]
            texts = [parts[place].text for place in places]
            batch = backend.encode_batch_fast(texts, add_special_tokens=False)
            for place, encoding in zip(places, batch, strict=True):
                ids[place] = encoding.ids
        return ids

    def batches(self, pieces: Iterable[Piece], inside: bool = False) -> Iterator[TokenBatch]:
        """Encode documents in batches of a megabyte of text; `inside` says that the first of them
        began elsewhere."""
        parts: list[Piece] = []
        size = 0
        for part in cut(pieces, self.rule):
            parts.append(part)
            size += len(part.text) + _PART
            if size >= _BATCH:
                yield self._batch(parts, inside)
                parts, size, inside = [], 0, not part.last
        if parts:
            yield self._batch(parts, inside)

    def _batch(self, parts: Sequence[Piece], inside: bool) -> TokenBatch:
        n_bytes = sum(len(part.text.encode()) for part in parts)
        characters = sum(len(part.text) for part in parts)
        last = [part.last for part in parts]
        return TokenBatch(self.encode(parts, inside), last, inside, n_bytes, characters)

    def _lost(self, texts: Sequence[str]) -> float:
        """The share of letters and digits lost by encoding and decoding the texts."""
        before = sum(map(str.isalnum, chain.from_iterable(texts)))
        ids = self.encode([Piece(text, True) for text in texts])
        decoded = self.opening.decode_batch(ids, skip_special_tokens=True)
        after = sum(map(str.isalnum, chain.from_iterable(decoded)))
        return max(0.0, 1 - after / before) if before else 0.0


def joined(files: Sequence[TokenFile]) -> tuple[TokenFile, NDArray[np.int64]]:
    """Concatenate token streams in memory; also returns the start of each.

    An id shared by the end of a document and the start of the next is shared between streams too.
    """
    shared = int(files[0].opening == files[0].closing)
    kept = [file.ids[shared if number else 0 :] for number, file in enumerate(files)]
    begins = np.cumsum([0, *(len(file.ids) - shared for file in files[:-1])])
    first = files[0]
    whole = replace(
        first,
        ids=np.concatenate(kept),
        starts=np.concatenate([f.starts + begin for f, begin in zip(files, begins, strict=True)]),
        document_bytes=np.concatenate([file.document_bytes for file in files]),
        n_bytes=sum(file.n_bytes for file in files),
        max_id=max(file.max_id for file in files),
        blank=sum(file.blank for file in files),
        undecodable=sum(file.undecodable for file in files),
        lost=sum(f.lost * f.n_bytes for f in files) / max(1, sum(f.n_bytes for f in files)),
        fingerprint=cache.key(*(file.fingerprint for file in files)),
        path=None,
        characters=None,
        text_hash=None,
    )
    return whole, begins


def hashed(pieces: Iterable[Piece], digest: hashlib._Hash) -> Iterator[Piece]:
    """Yields the pieces, and adds their text to the hash."""
    for piece in pieces:
        digest.update(piece.text.encode())
        yield piece


def _backend(settings: dict[str, Any]) -> Tokenizer:
    backend = Tokenizer.from_str(json.dumps(settings))
    backend.encode_special_tokens = True
    return backend


def _bare(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A tokenizer step without the prefix it adds to each text, which only documents get."""
    if not step or step["type"] == "Prepend":
        return None
    bare = dict(step)
    for name in {"normalizers", "pretokenizers"} & bare.keys():
        bare[name] = [kept for child in bare[name] if (kept := _bare(child))]
    if "prepend_scheme" in bare:
        bare["prepend_scheme"] = "never"
    if "add_prefix_space" in bare:
        bare["add_prefix_space"] = False
    return bare


@dataclass
class _Making:
    """Makes a token file: at once, or in units if the text is large."""

    name: str
    documents: Callable[[], Documents]
    tokenizer: PreTrainedTokenizerFast
    framing: Framing
    watch: Watch
    say: Say
    workers: Workers

    @cached_property
    def part(self) -> Documents:
        return self.documents()

    @cached_property
    def encoder(self) -> TokenEncoder:
        encoder = TokenEncoder(self.tokenizer, self.part.sample(_PROOF, 1 << 14))
        if encoder.rule is NOWHERE:
            self.say(
                "tokenizer: cutting documents would change tokens, so documents are encoded "
                f"whole, those over {LONGEST >> 20}M characters in parts of that size"
            )
        return encoder

    @cached_property
    def ranges(self) -> list[tuple[int, int]]:
        """The ranges of the corpus that are units."""
        if self.part.n_bytes <= ranges.RANGE_BYTES:
            return [(0, self.part.corpus.n_bytes)]
        return self.part.ranges(self.encoder.rule, ranges.range_bytes(self.part.n_bytes))

    @cached_property
    def store(self) -> Units:
        """The directory of the units."""
        with cache.writing(cache.entry_path(self.name)):
            return Units(cache.entry_path(f"{self.name}.units"))

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint16 if self.encoder.highest < 1 << 16 else np.uint32)

    def make_units(self) -> list[dict[str, Any]]:
        """Makes the units of a large text, unless the whole is there, and returns their facts."""
        if len(self.ranges) == 1 or (self.store and cache.entry_path(self.name).is_dir()):
            return []
        with cache.writing(self.store.directory):
            make = self.store.make
            return make(self.units, self._write, self.workers, self.watch, "tokenizing")

    @cached_property
    def units(self) -> list[Unit]:
        key = partial(cache.key, self.name, self.encoder.rule.pattern)
        return [Unit(key(begin, end), end - begin) for begin, end in self.ranges]

    def build(self, directory: Path) -> dict[str, Any]:
        """Fills the directory of the cache entry, and returns its metadata."""
        if len(self.ranges) == 1:
            with self.watch("tokenizing", self.part.n_bytes) as advance:
                facts = self._write(0, directory, advance)
            return self._info([facts]) | {
                "derived": {name: facts[name] for name in ("characters", "text_hash")}
            }
        made = self.make_units()
        lengths = [facts["tokens"] for facts in made]
        with self.watch("joining the parts", 0):
            files = join_shards(directory, [self.store.path(unit) for unit in self.units], lengths)
            info = self._info(made)
            derived = {
                "characters": sum(facts["characters"] for facts in made),
                "text_hash": self.part.text_hash(),
                "shards": lengths,
                "fingerprint": cache.fingerprint_of(files, json.loads(json.dumps(info))),
            }
        return info | {"derived": derived}

    def close(self) -> None:
        """Removes the units of an entry that is complete."""
        if store := self.__dict__.pop("store", None):
            with store:
                if cache.entry_path(self.name).is_dir():
                    store.discard()

    def _write(self, number: int, directory: Path, advance: Advance) -> dict[str, Any]:
        """Writes the files of one range, and returns its facts."""
        begin, end = self.ranges[number]
        characters, digest = 0, hashlib.sha256()
        stream = TokenStream(self.framing, self.dtype, continues=number > 0)
        pieces = hashed(self.part.pieces(begin, end), digest)
        with (directory / "ids").open("wb") as ids, (directory / "starts").open("wb") as starts:
            for batch in self.encoder.batches(pieces, self.part.is_inside(begin)):
                tokens, begun = stream.add(batch)
                ids.write(tokens.data)
                starts.write(begun.tobytes())
                characters += batch.characters
                advance(batch.n_bytes)
        with (directory / "document_bytes").open("wb") as sizes:
            for some in self.part.sizes(begin, end):
                sizes.write(some.tobytes())
        return {
            "tokens": stream.n_tokens,
            "max_id": stream.max_id,
            "characters": characters,
            "text_hash": digest.hexdigest(),
        }

    def _info(self, made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The metadata of all ranges, which is the same however the text is cut."""
        corpus = self.part.corpus
        return {
            "dtype": self.dtype.name,
            "n_bytes": self.part.n_bytes,
            "opening": self.framing.opening,
            "closing": self.framing.closing,
            "max_id": max(facts["max_id"] for facts in made),
            "blank": corpus.blank,
            "undecodable": corpus.undecodable,
            "lost": self.encoder.lost,
            "by_source": self.part.by_source(),
            "marks": corpus.marks,
            "cuts": self.encoder.rule.pattern,
        }


def _opened(entry: cache.Entry) -> TokenFile:
    def mapped(name: str, dtype: str) -> NDArray[Any]:
        return np.memmap(entry.path / name, dtype=dtype, mode="r")

    dtype, lengths = entry.info["dtype"], entry.info.get("shards")
    names = [] if lengths is None else [shard_name(number) for number in range(len(lengths))]
    paths = [entry.path / name for name in names]
    return TokenFile(
        ids=mapped("ids", dtype) if lengths is None else ShardedIds(paths, lengths, dtype),
        starts=mapped("starts", "int64"),
        document_bytes=mapped("document_bytes", "int64"),
        **{name: entry.info[name] for name in _NOTES},
        fingerprint=entry.info.get("fingerprint", entry.fingerprint),
        reused=entry.reused,
        path=entry.path,
        characters=entry.info.get("characters"),
        text_hash=entry.info.get("text_hash"),
    )
