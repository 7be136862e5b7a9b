"""The segments of text that figures are made of, the same bytes for every model; and the domains of
its documents.

Sums over segments are all that is kept of a measurement, so that memory does not grow with the
text; totals, tables by document or domain and confidence intervals are made from them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from llmkit.config.schema import Config, DataConfig
from llmkit.data import tables
from llmkit.data.delimited import named_format
from llmkit.data.documents import pieces
from llmkit.data.reading import Reading
from llmkit.data.sources import Source
from llmkit.data.tokens import TokenFile
from llmkit.errors import ConfigError
from llmkit.evaluation.windows import Places

ENOUGH_DOCUMENTS = 30
"""From this many documents on, they are the segments; fewer are cut into blocks."""

_BLOCKS, _SMALLEST_BLOCK = 200, 1024
_PART = 1 << 20


@dataclass(frozen=True)
class Segments:
    """A partition of a token stream whose borders are the same places of the text for all models.

    Blocks are about equally long parts of a document; where a border falls into a token, the token
    belongs to the block in which it begins.
    """

    kind: str
    """`documents` or `blocks`."""
    begins: Places
    """[segments], the first place of each."""
    n_bytes: NDArray[np.float64]
    """[segments], the UTF-8 bytes of each one's text."""
    of_document: Places
    """[documents], the first segment of each."""

    def of(self, places: Places) -> Places:
        """The segment to which each place belongs."""
        return np.asarray(np.searchsorted(self.begins, places, side="right") - 1)

    def by_document(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums over segments [segments, ...] as sums over documents [documents, ...]."""
        return np.add.reduceat(values, self.of_document, axis=0)


def segments_of(tokens: TokenFile, lengths: NDArray[np.int64]) -> Segments:
    """The documents, or blocks of the documents where there are few.

    `lengths` are the bytes of each id, as `byte_lengths` gives them.
    """
    if len(tokens.starts) >= ENOUGH_DOCUMENTS:
        numbers = np.arange(len(tokens.starts))
        sizes = np.asarray(tokens.document_bytes, dtype=np.float64)
        return Segments("documents", tokens.starts, sizes, numbers)
    block = max(_SMALLEST_BLOCK, tokens.n_bytes // _BLOCKS)
    begins: list[int] = []
    n_bytes: list[float] = []
    of_document: list[int] = []
    ends = [*tokens.starts[1:].tolist(), len(tokens.ids)]
    for start, end, size in zip(
        tokens.starts.tolist(), ends, tokens.document_bytes.tolist(), strict=True
    ):
        count = max(1, round(size / block))
        of_document.append(len(begins))
        begins += [start, *_borders(tokens, start, end, lengths, count)]
        n_bytes += [size / count] * count
    kind = "documents" if len(begins) == len(of_document) else "blocks"
    return Segments(
        kind, np.array(begins), np.array(n_bytes), np.array(of_document, dtype=np.int64)
    )


def byte_lengths(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.int64]:
    """[ids], the bytes of text that each id stands for: exact for byte-level tokenizers, close for
    others. Special tokens stand for none."""
    byte_level = isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel)
    vocabulary = tokenizer.get_vocab()
    lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    for token, id in vocabulary.items():
        # A byte-level token has one character for each byte.
        plain = token.removeprefix("##").replace("\u2581", " ")
        is_byte = len(token) == 6 and token.startswith("<0x")
        lengths[id] = len(token) if byte_level else 1 if is_byte else len(plain.encode())
    lengths[tokenizer.all_special_ids] = 0
    return lengths


@dataclass(frozen=True)
class Survey:
    """The documents that hold text, in their order."""

    characters: int
    domains: tuple[str, ...]
    """The names of the domains, in the order in which they first come."""
    domain_of_document: NDArray[np.int64]
    """[documents], the number of each one's domain."""


def survey_files(
    tokens: TokenFile, found: Sequence[Source], data: DataConfig, column: str | int | None
) -> Survey:
    """The documents of a token file that was made of these sources.

    Their domain is their file, or what a column of their table holds; only for that a table is read
    once more. Raises what reading raises.
    """
    if column is None:
        domains = ((str(found[number].path), n) for number, n, _ in tokens.by_source)
        return _survey(tokens.characters, domains)
    values = (value for source in found for value in _values(source, data, column))
    return _survey(tokens.characters, ((value, 1) for value in values))


def survey_mixture(config: Config, domains: Mapping[str, TokenFile]) -> Survey:
    """The same for the held-out text of `data.mixture`, whose domains have names."""
    if config.evaluation.domain_column is not None:
        raise ConfigError(
            "the domains are those of data.mixture",
            where="evaluation.domain_column",
            next="leave it out, or name other text in data.test_files",
        )
    characters = sum(tokens.characters or 0 for tokens in domains.values())
    return _survey(characters, ((name, len(each.starts)) for name, each in domains.items()))


def _survey(characters: int | None, domains: Iterable[tuple[str, int]]) -> Survey:
    """The survey of documents that come as (domain, how many in a row)."""
    assert characters is not None
    numbers, of_document = dict[str, int](), array("q")
    for name, n_documents in domains:
        of_document.extend(repeat(numbers.setdefault(name, len(numbers)), n_documents))
    return Survey(characters, tuple(numbers), np.asarray(of_document, dtype=np.int64))


def _values(source: Source, data: DataConfig, column: str | int) -> Iterator[str]:
    """The value in a column of each row with text."""
    texts = pieces(source, Reading(data, lambda _: None))
    for value, (text, _) in zip(_column(source, data, column), texts, strict=False):
        if text and not text.isspace():
            yield value


def _borders(
    tokens: TokenFile, start: int, end: int, lengths: NDArray[np.int64], count: int
) -> list[int]:
    """The first places of all blocks of a document but the first."""
    if count == 1:
        return []
    total = sum(int(part.sum()) for part in _parts(tokens, start, end, lengths))
    wanted = total * np.arange(1, count) / count
    borders: list[int] = []
    before, first = 0, start + 1
    for part in _parts(tokens, start, end, lengths):
        reached = before + np.cumsum(part)
        due = wanted[len(borders) :]
        due = due[due <= reached[-1]]
        # The token after the one that reaches the border is the first of the block; the place
        # before it predicts it.
        borders += (first + np.searchsorted(reached, due)).tolist()
        before, first = int(reached[-1]), first + len(part)
    return borders


def _parts(
    tokens: TokenFile, start: int, end: int, lengths: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """The bytes of a document's tokens after its opening, a part at a time."""
    for offset in range(start + 1, end, _PART):
        yield lengths[tokens.ids[offset : min(offset + _PART, end)]]


def _column(source: Source, data: DataConfig, column: str | int) -> Iterator[str]:
    """The value of each row in a column; blank rows count."""
    if named_format(source, data) == "txt":
        raise ConfigError(
            "plain text has no columns",
            where=f"evaluation.domain_column; {source.path}",
            next="leave evaluation.domain_column out: the domain is then the file",
        )
    table = tables.open_table(source, Reading(data, lambda _: None))
    number = table.columns.find(column, "evaluation.domain_column", str(source.path))
    for record in table.records([number]):
        blank = record.values is None
        yield "" if blank else str(tables.field(record, table.columns, number))
