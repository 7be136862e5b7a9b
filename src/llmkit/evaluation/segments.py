"""The segments that a text is scored in, the same bytes for every model; and its domains.

Only sums over segments are kept, so that memory does not grow with the text; totals, tables by
document or domain, and confidence intervals are computed from them.
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
from llmkit.data.readers import tables
from llmkit.data.readers.decode import Reading
from llmkit.data.readers.delimited import named_format
from llmkit.data.readers.files import Source
from llmkit.data.text.documents import pieces
from llmkit.data.text.token_file import Places, TokenFile
from llmkit.errors import ConfigError

ENOUGH_DOCUMENTS = 30
"""With at least this many documents, each is a segment; fewer are cut into blocks."""

_BLOCKS, _SMALLEST_BLOCK = 200, 1024
_PART = 1 << 20


@dataclass(frozen=True)
class Segments:
    """A partition of a token stream with the same boundaries in the text for all models.

    Blocks are parts of a document of about equal length; a token that spans a boundary belongs to
    the block in which it begins.
    """

    kind: str
    """`documents` or `blocks`."""
    begins: Places
    """[segments], the first place of each."""
    n_bytes: NDArray[np.float64]
    """[segments], the number of UTF-8 bytes of each."""
    of_document: Places
    """[documents], the first segment of each."""

    def of(self, places: Places) -> Places:
        """The segment of each place."""
        return np.asarray(np.searchsorted(self.begins, places, side="right") - 1)

    def by_document(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums over documents [documents, ...] from sums over segments [segments, ...]."""
        return np.add.reduceat(values, self.of_document, axis=0)


def segments_of(tokens: TokenFile, lengths: NDArray[np.int64]) -> Segments:
    """The segments of a text: its documents, or blocks if it has few documents.

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
    """[ids], the bytes of text of each id: exact for byte-level tokenizers, approximate for others.
    Special tokens have none."""
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
    """The non-empty documents of a text, in order."""

    characters: int
    domains: tuple[str, ...]
    """The names of the domains, in order of first appearance."""
    domain_of_document: NDArray[np.int64]
    """[documents], the number of each one's domain."""


def survey_files(
    tokens: TokenFile, found: Sequence[Source], data: DataConfig, column: str | int | None
) -> Survey:
    """The documents of a token file that was made from these sources.

    Their domain is their file, or the value of `column`; only then are the tables read again.
    Raises the errors of reading a table.
    """
    if column is None:
        domains = ((str(found[number].path), n) for number, n, _ in tokens.by_source)
        return _survey(tokens.characters, domains)
    values = (value for source in found for value in _values(source, data, column))
    return _survey(tokens.characters, ((value, 1) for value in values))


def survey_mixture(config: Config, domains: Mapping[str, TokenFile]) -> Survey:
    """The documents of the held-out text of `data.mixture`, whose domains have names."""
    if config.evaluation.domain_column is not None:
        raise ConfigError(
            "the domains are given by data.mixture",
            where="evaluation.domain_column",
            next="remove it, or name other text in data.test_files",
        )
    characters = sum(tokens.characters or 0 for tokens in domains.values())
    return _survey(characters, ((name, len(each.starts)) for name, each in domains.items()))


def _survey(characters: int | None, domains: Iterable[tuple[str, int]]) -> Survey:
    """The survey of documents given as runs of (domain, number of documents)."""
    assert characters is not None
    numbers, of_document = dict[str, int](), array("q")
    for name, n_documents in domains:
        of_document.extend(repeat(numbers.setdefault(name, len(numbers)), n_documents))
    return Survey(characters, tuple(numbers), np.asarray(of_document, dtype=np.int64))


def _values(source: Source, data: DataConfig, column: str | int) -> Iterator[str]:
    """The value in a column, for each row with text."""
    texts = pieces(source, Reading(data, lambda _: None))
    for value, (text, _) in zip(_column(source, data, column), texts, strict=False):
        if text and not text.isspace():
            yield value


def _borders(
    tokens: TokenFile, start: int, end: int, lengths: NDArray[np.int64], count: int
) -> list[int]:
    """The first place of each block of a document except the first block."""
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
        # The block starts with the token after the one that reaches the border; the place before
        # that token predicts it.
        borders += (first + np.searchsorted(reached, due)).tolist()
        before, first = int(reached[-1]), first + len(part)
    return borders


def _parts(
    tokens: TokenFile, start: int, end: int, lengths: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """The byte lengths of a document's tokens after the opening token, in parts."""
    for offset in range(start + 1, end, _PART):
        yield lengths[tokens.ids[offset : min(offset + _PART, end)]]


def _column(source: Source, data: DataConfig, column: str | int) -> Iterator[str]:
    """The value of each row in a column; blank rows are included."""
    if named_format(source, data) == "txt":
        raise ConfigError(
            "plain text has no columns",
            where=f"evaluation.domain_column; {source.path}",
            next="remove evaluation.domain_column: the domain is then the file",
        )
    table = tables.open_table(source, Reading(data, lambda _: None))
    number = table.columns.find(column, "evaluation.domain_column", str(source.path))
    for record in table.records([number]):
        blank = record.values is None
        yield "" if blank else str(tables.field(record, table.columns, number))
