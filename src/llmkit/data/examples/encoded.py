"""Labelled rows, and their token ids as padded batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from llmkit.data.records import splits
from llmkit.data.records.labels import MULTI, Labels
from llmkit.errors import DataError
from llmkit.models.control_tokens import ControlTokenCount, control_tokens, text_only

UNLABELLED = -100
"""The label of row -1, which has none; NaN in batches of float labels."""

PERCENTILES = (50, 90, 95, 99, 100)


@dataclass(frozen=True)
class LabelledTable:
    """Labelled rows in memory."""

    texts: Sequence[tuple[str, ...]]
    targets: NDArray[Any]
    """int64 [rows], the class; bool [rows, classes]; or float32 [rows], depending on the kind."""
    labels: Labels
    places: Sequence[tuple[str, int]]
    """File and row number of each row, counted from 1."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def fingerprint(self) -> str:
        """The sha256 of texts, labels and label names, in order."""
        whole = hashlib.sha256(repr((self.labels.kind, self.labels.names)).encode())
        for texts in self.texts:
            # Lengths distinguish ("ab", "c") from ("a", "bc").
            whole.update(f"{[len(text) for text in texts]}{''.join(texts)}".encode())
        whole.update(np.ascontiguousarray(self.targets).tobytes())
        return whole.hexdigest()

    @property
    def sides(self) -> Sequence[tuple[str, ...]]:
        """[rows], the texts that stay on one side when rows are held out."""
        return self.texts

    def strata(self) -> NDArray[np.int64]:
        """[rows], the stratum of each row."""
        return splits.strata(self.labels, self.targets)

    def counts(self) -> dict[str, Any]:
        """The number of rows, and of those of each class."""
        counts: dict[str, Any] = {"rows": len(self)}
        if self.targets.dtype == np.int64:
            numbers = np.bincount(self.targets, minlength=len(self.labels)).tolist()
            counts["classes"] = dict(zip(self.labels.names, numbers, strict=True))
        elif self.targets.ndim > 1:
            numbers = self.targets.sum(axis=0).tolist()
            counts["classes"] = dict(zip(self.labels.names, numbers, strict=True))
        return counts

    def part(self, chosen: NDArray[np.bool_]) -> LabelledTable:
        """The chosen rows, in order."""
        rows = np.flatnonzero(chosen).tolist()
        return LabelledTable(
            [self.texts[row] for row in rows],
            self.targets[chosen],
            self.labels,
            [self.places[row] for row in rows],
        )

    def examples(
        self,
        tokenizer: PreTrainedTokenizerFast,
        max_length: int,
        advance: Callable[[int], None] = lambda n_rows: None,
    ) -> Encoded:
        """The rows as token ids, encoded once on all cores."""
        return Encoder(tokenizer, max_length).encode(self.texts, self.targets, advance)


@dataclass(frozen=True)
class Encoded:
    """Concatenated token ids of texts, with their labels if there are any."""

    ids: NDArray[np.int32]
    types: NDArray[np.uint8] | None
    """The text of a pair that each token belongs to; None if the tokenizer does not report it."""
    starts: NDArray[np.int64]
    """[rows + 1]"""
    uncut: NDArray[np.int32]
    """[rows], the number of tokens before truncation."""
    targets: NDArray[Any] | None
    pad_id: int

    def __len__(self) -> int:
        return len(self.uncut)

    @classmethod
    def of_ids(
        cls,
        rows: Sequence[Sequence[int]],
        pad_id: int,
        uncut: Sequence[int] | None = None,
    ) -> Encoded:
        """Rows of ids without labels; `uncut` are their lengths before truncation."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return cls(
            ids=_flat(rows, np.int32),
            types=None,
            starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            uncut=np.array(lengths if uncut is None else uncut, np.int32),
            targets=None,
            pad_id=pad_id,
        )

    @classmethod
    def joined(cls, parts: Sequence[Encoded]) -> Encoded:
        """The rows of several, without their labels, one after another."""
        types = [part.types for part in parts if part.types is not None]
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(
            ids=np.concatenate([part.ids for part in parts]),
            types=np.concatenate(types) if types else None,
            starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            uncut=np.concatenate([part.uncut for part in parts]),
            targets=None,
            pad_id=parts[0].pad_id,
        )

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[rows], in tokens."""
        return np.diff(self.starts)

    def count(self, rows: Sequence[int] | NDArray[np.int64]) -> int:
        """Number of predictions in these rows: one for each except -1."""
        return int((np.asarray(rows) >= 0).sum())

    def labels(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """The targets of these rows; none for row -1."""
        assert self.targets is not None
        chosen = np.asarray(rows, dtype=np.int64)
        return np.asarray(self.targets[chosen[chosen >= 0]])

    @property
    def id_bytes(self) -> bytes:
        """The token ids of all rows."""
        return self.ids.tobytes()

    def longest_first(self) -> NDArray[np.int64]:
        """All rows by decreasing length, so that neighbours need little padding."""
        return np.argsort(-self.lengths, kind="stable")

    def batch(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The rows as tensors [rows, longest of them], padded on the right.

        `input_ids`, `attention_mask` and, if the tokenizer returns them, `token_type_ids`, all
        int64. `labels` int64 [rows], UNLABELLED for row -1; for multi-label classification float32
        [rows, classes], for regression float32 [rows], NaN for row -1. Row -1 and rows without
        tokens attend to one padding token: attention to nothing gives NaN.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        inside = self._inside(chosen)
        first = np.arange(inside.shape[1]) == 0
        batch: dict[str, NDArray[Any]] = {
            "input_ids": self.aligned(chosen, self.ids, self.pad_id),
            "attention_mask": (inside | first).astype(np.int64),
        }
        if self.types is not None:
            batch["token_type_ids"] = self.aligned(chosen, self.types, 0)
        if self.targets is not None:
            batch["labels"] = self._labels(self.targets, chosen)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def aligned(
        self, rows: Sequence[int] | NDArray[np.int64], values: NDArray[Any], rest: int
    ) -> NDArray[np.int64]:
        """The values [tokens] of these rows, padded with `rest` like their ids."""
        chosen = np.asarray(rows, dtype=np.int64)
        inside = self._inside(chosen)
        places = self.starts[chosen][:, None] + np.arange(inside.shape[1])
        filled = np.full(inside.shape, rest, dtype=np.int64)
        filled[inside] = values[places[inside]]
        return filled

    def _inside(self, chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[rows, longest of them, at least 1], whether a place holds a token."""
        lengths = np.where(chosen < 0, 0, self.lengths[chosen])
        columns = np.arange(max(1, int(lengths.max(initial=0))))
        return np.asarray(columns < lengths[:, None])

    def length_report(self) -> dict[str, Any]:
        """Percentiles of the row lengths before truncation, and the share of truncated rows."""
        return length_report(self.uncut, self.lengths)

    def _labels(self, targets: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
        chosen = targets[rows]
        labels = chosen if chosen.dtype == np.int64 else chosen.astype(np.float32)
        labels[rows < 0] = UNLABELLED if labels.dtype == np.int64 else np.nan
        return labels


def length_report(uncut: NDArray[Any], lengths: NDArray[Any]) -> dict[str, Any]:
    """Percentiles of lengths in tokens before truncation, and number and share of truncated
    rows."""
    rank = [int(np.ceil(percent / 100 * len(uncut))) - 1 for percent in PERCENTILES]
    ordered = np.sort(uncut)
    return {
        "percentiles": {
            str(percent): int(ordered[place])
            for percent, place in zip(PERCENTILES, rank, strict=True)
        },
        "truncated": int((uncut > lengths).sum()),
        "truncated_share": float((uncut > lengths).mean()),
    }


def padding_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that batches are padded with; raises DataError if the tokenizer has none."""
    if tokenizer.pad_token_id is None:
        raise DataError(
            "the tokenizer has no padding token, and batches of texts need one",
            where="tokenizer.name_or_path",
            next="set pad_token in its tokenizer_config.json to one of its tokens",
        )
    return int(tokenizer.pad_token_id)


class TextEncoder:
    """What all encoders of texts for padded batches know and count."""

    at_once = 4096
    """Number of texts that are encoded together on all cores."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
        self.pad_id = padding_id(tokenizer)
        self.named = ControlTokenCount(control_tokens(tokenizer))
        self.max_length = max_length
        self.gives_types = "token_type_ids" in tokenizer.model_input_names

    def chunks(
        self, texts: Sequence[tuple[str, ...]], advance: Callable[[int], None]
    ) -> Iterator[Sequence[tuple[str, ...]]]:
        """The texts in parts that are encoded together; counts their control tokens, and calls
        `advance` with the size of each part when it is done."""
        for first in range(0, len(texts), self.at_once):
            some = texts[first : first + self.at_once]
            for each in some:
                self.named.add(each)
            yield some
            advance(len(some))


class Encoder(TextEncoder):
    """Encodes like the tokenizer with truncation, but faster."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
        super().__init__(tokenizer, max_length)
        self.truncated = 0
        """Number of rows so far that were longer than `max_length`."""
        # A copy: the tokenizer keeps its settings. In the copy, special tokens in a text are text.
        self.whole, self.cut = text_only(tokenizer), text_only(tokenizer)
        self.side = tokenizer.truncation_side
        self.cut.enable_truncation(max_length, direction=self.side)

    def encode(
        self,
        texts: Sequence[tuple[str, ...]],
        targets: NDArray[Any] | None = None,
        advance: Callable[[int], None] = lambda n_rows: None,
    ) -> Encoded:
        """Encode texts or pairs of texts; `advance` is called with the number encoded."""
        ids, types, lengths, uncut = [], [], [], []
        for some in self.chunks(texts, advance):
            encodings, before = self._encode(some)
            uncut += before
            self.truncated += sum(length > self.max_length for length in before)
            lengths += [len(encoding) for encoding in encodings]
            ids.append(_flat((encoding.ids for encoding in encodings), np.int32))
            if self.gives_types:
                types.append(_flat((encoding.type_ids for encoding in encodings), np.uint8))
        starts = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(lengths, out=starts[1:])
        return Encoded(
            ids=np.concatenate([*ids, np.zeros(0, np.int32)]),
            types=np.concatenate([*types, np.zeros(0, np.uint8)]) if self.gives_types else None,
            starts=starts,
            uncut=np.array(uncut, dtype=np.int32),
            targets=targets,
            pad_id=self.pad_id,
        )

    def _encode(self, texts: Sequence[tuple[str, ...]]) -> tuple[list[Any], list[int]]:
        """The truncated encoding of each text, and its length before."""
        inputs = [text if len(text) > 1 else text[0] for text in texts]
        encodings = self.whole.encode_batch_fast(inputs)
        lengths = [len(encoding) for encoding in encodings]
        # The backend truncates pairs: the few that are too long are encoded again.
        long = [row for row, length in enumerate(lengths) if length > self.max_length]
        for row, encoding in zip(
            long, self.cut.encode_batch_fast([inputs[row] for row in long]), strict=True
        ):
            encodings[row] = encoding
        return encodings, lengths


def targets(labels: Labels, encoded: Sequence[Any]) -> NDArray[Any]:
    """The results of `Labels.encode` for the rows, as an array."""
    if labels.kind != MULTI:
        return np.array(encoded, dtype=np.int64 if labels.is_classes else np.float32)
    marks = np.zeros((len(encoded), len(labels)), dtype=np.bool_)
    for row, numbers in enumerate(encoded):
        marks[row, numbers] = True
    return marks


def _flat(parts: Any, dtype: type) -> NDArray[Any]:
    return np.fromiter(chain.from_iterable(parts), dtype=dtype)
