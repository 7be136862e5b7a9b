"""Conversations as token ids, with which of them are to be predicted: what the assistant says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from llmkit.data.examples import length_report
from llmkit.models.control_tokens import control_tokens, renamed

_TEXTS_AT_ONCE = 1024

Parts = Sequence[str]
"""The text of a conversation, parted in turn into what the assistant reads and what it says."""


@dataclass(frozen=True)
class Responses:
    """Conversations as token ids, end to end; those that were cut down to no response are not
    among them."""

    ids: NDArray[np.int32]
    scored: NDArray[np.bool_]
    """[tokens], whether each is predicted; the first of a conversation never is."""
    starts: NDArray[np.int64]
    """[conversations + 1]"""
    uncut: NDArray[np.int64]
    """Tokens of each text that was given, without the cut."""
    left_out: tuple[int, ...]
    """Rows with a response that is behind the cut as a whole."""
    parted: int
    """Texts in which a token would hold an end of a prompt and the beginning of its response: the
    two were tokenized apart."""
    max_length: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[conversations], in tokens."""
        return np.diff(self.starts)

    @property
    def fingerprint(self) -> str:
        """The sha256 of what is read and what is predicted."""
        whole = hashlib.sha256(self.ids.tobytes())
        whole.update(self.scored.tobytes())
        whole.update(self.starts.tobytes())
        return whole.hexdigest()

    def report(self) -> dict[str, Any]:
        """Percentiles of the lengths before the cut, the share it cuts, and tokens predicted."""
        return {
            **length_report(self.uncut, np.minimum(self.uncut, self.max_length)),
            "tokens": len(self.ids),
            "predicted": int(self.scored.sum()),
            "parted": self.parted,
        }


def encode(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[Parts],
    max_length: int,
    rows: Sequence[int] | None = None,
    advance: Callable[[int], None] = lambda n_rows: None,
) -> Responses:
    """The token ids that a tokenizer gives for conversations, cut after `max_length` of them.

    `rows` tells which conversation each text is of, where one may have several. The ids before a
    response are those that the model gets to read when it is asked: those of the text up to there.
    """
    encoder = _Encoder(tokenizer)
    ids: list[Sequence[int]] = []
    scored: list[NDArray[np.bool_]] = []
    uncut, left_out = [], []
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[first : first + _TEXTS_AT_ONCE]
        for number, (tokens, bounds) in enumerate(encoder.encode(some), first):
            marks = _marks(bounds)[:max_length]
            uncut.append(len(tokens))
            if marks.any():
                ids.append(tokens[:max_length])
                scored.append(marks)
            else:
                left_out.append(number if rows is None else rows[number])
        advance(len(some))
    return Responses(
        ids=np.fromiter(chain.from_iterable(ids), dtype=np.int32),
        scored=np.concatenate([*scored, np.zeros(0, np.bool_)]),
        starts=np.cumsum([0, *map(len, ids)], dtype=np.int64),
        uncut=np.array(uncut, dtype=np.int64),
        left_out=tuple(dict.fromkeys(left_out)),
        parted=encoder.parted,
        max_length=max_length,
    )


def _marks(bounds: Sequence[int]) -> NDArray[np.bool_]:
    """[tokens], which belong to every other of the parts that end at these bounds; the first token
    follows nothing and is not predicted."""
    lengths = np.diff(bounds, prepend=0)
    marks = np.repeat(np.arange(len(bounds)) % 2 == 1, lengths)
    marks[:1] = False
    return marks


class _Encoder:
    """Gives token ids, and where each part of a text ends among them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.control = control_tokens(tokenizer)
        self.backend = renamed(tokenizer)
        self.parted = 0

    def encode(self, some: Sequence[Parts]) -> list[tuple[list[int], list[int]]]:
        wholes = self._ids(["".join(parts) for parts in some])
        pieces = iter(self._ids(list(chain.from_iterable(some))))
        return [
            self._one(parts, whole, [next(pieces) for _ in parts])
            for parts, whole in zip(some, wholes, strict=True)
        ]

    def _one(
        self, parts: Parts, whole: list[int], pieces: list[list[int]]
    ) -> tuple[list[int], list[int]]:
        """The ids of a text and where its parts end, given the ids of each part by itself."""
        together = list(chain.from_iterable(pieces))
        bounds = list(accumulate(map(len, pieces)))
        if together == whole:
            return whole, bounds
        # A part by itself may begin otherwise than behind another: SentencePiece adds a space.
        beginnings = self._ids(list(accumulate(parts)))
        if all(whole[: len(ids)] == ids for ids in beginnings):
            return whole, list(map(len, beginnings))
        self.parted += 1
        return together, bounds

    def _ids(self, texts: list[str]) -> list[list[int]]:
        placed = [self.control.placed(text) for text in texts]
        encodings = self.backend.encode_batch_fast(placed, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]
