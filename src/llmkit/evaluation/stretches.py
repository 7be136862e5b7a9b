"""The stretches of text that figures are made of: the same bytes for every model.

Sums over stretches are all that is kept of a measurement, so that memory does not grow with the
text; totals, tables by document or domain and confidence intervals are made from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from llmkit.evaluation.windows import Places, Tokens

ENOUGH_DOCUMENTS = 30
"""From this many documents on, they are the stretches; fewer are cut into blocks."""

_BLOCKS, _SMALLEST_BLOCK = 200, 1024
_PART = 1 << 20


@dataclass(frozen=True)
class Stretches:
    """A partition of a token stream whose borders are the same places of the text for all models.

    Blocks are about equally long parts of a document; where a border falls into a token, the token
    belongs to the block in which it begins.
    """

    kind: str
    """`documents` or `blocks`."""
    begins: Places
    """[stretches], the first place of each."""
    n_bytes: NDArray[np.float64]
    """[stretches], the UTF-8 bytes of each one's text."""
    of_document: Places
    """[documents], the first stretch of each."""

    def of(self, places: Places) -> Places:
        """The stretch to which each place belongs."""
        return np.asarray(np.searchsorted(self.begins, places, side="right") - 1)

    def by_document(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums over stretches [stretches, ...] as sums over documents [documents, ...]."""
        return np.add.reduceat(values, self.of_document, axis=0)


def stretches(tokens: Tokens, lengths: NDArray[np.int64]) -> Stretches:
    """The documents, or blocks of the documents where there are few.

    `lengths` are the bytes of each id, as `byte_lengths` gives them.
    """
    if len(tokens.starts) >= ENOUGH_DOCUMENTS:
        numbers = np.arange(len(tokens.starts))
        sizes = np.asarray(tokens.document_bytes, dtype=np.float64)
        return Stretches("documents", tokens.starts, sizes, numbers)
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
    return Stretches(
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


def _borders(
    tokens: Tokens, start: int, end: int, lengths: NDArray[np.int64], count: int
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
    tokens: Tokens, start: int, end: int, lengths: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """The bytes of a document's tokens after its opening, a part at a time."""
    for offset in range(start + 1, end, _PART):
        yield lengths[tokens.ids[offset : min(offset + _PART, end)]]
