"""Token ids of questions with windows of their contexts, and the answers in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.data.examples.encoded import UNLABELLED
from llmkit.data.examples.windows import LongTextEncoder, WindowRows, concatenated, window_starts
from llmkit.data.records.questions import Answer

NO_ANSWER = 0
"""The token, the first of a window, that stands for no answer."""

_Rows = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class AnswerWindows(WindowRows):
    """A question with a window of its context, for each window of each row; windows overlap."""

    owners: NDArray[np.int64]
    """[windows], the number of the row of each."""
    offsets: NDArray[np.int64]
    """[tokens of all windows, 2], the characters of the context that a token has; -1 for others."""
    targets: NDArray[np.int64] | None
    """[windows, 2], the first and the last token of the answer, or NO_ANSWER twice."""
    cut_questions: int
    """Number of rows whose question was cut, so that the context has half of a window."""

    @property
    def id_bytes(self) -> bytes:
        """The token ids of all windows, and their answers."""
        return self.encoded.id_bytes + (b"" if self.targets is None else self.targets.tobytes())

    @cached_property
    def longest_answer(self) -> int:
        """The number of tokens of the longest answer; 1 without any."""
        assert self.targets is not None
        return int((self.targets[:, 1] - self.targets[:, 0]).max(initial=0)) + 1

    def count(self, rows: _Rows) -> int:
        """Number of predictions in these windows: one for each except -1."""
        return self.encoded.count(rows)

    def labels(self, rows: _Rows) -> NDArray[np.int64]:
        """The answers in these windows."""
        assert self.targets is not None
        chosen = np.asarray(rows, dtype=np.int64)
        return np.asarray(self.targets[chosen[chosen >= 0]])

    def batch(self, rows: _Rows) -> dict[str, torch.Tensor]:
        """The windows as tensors, padded on the right: those of `Encoded`; `context` [rows,
        tokens], 1 for the tokens that may be in an answer; `windows` [rows], their numbers; and if
        there are targets, `labels` [rows, 2], UNLABELLED for row -1."""
        chosen = np.asarray(rows, dtype=np.int64)
        batch = self.encoded.batch(rows)
        inside = self.encoded.aligned(rows, (self.offsets[:, 0] >= 0).astype(np.int64), 0)
        batch |= {"context": torch.from_numpy(inside), "windows": torch.from_numpy(chosen.copy())}
        if self.targets is not None:
            labels = np.where((chosen >= 0)[:, None], self.targets[chosen], UNLABELLED)
            batch["labels"] = torch.from_numpy(labels)
        return batch

    def characters(self, window: int, first: int, last: int) -> tuple[int, int]:
        """The start and the end of a span of tokens of a window, in characters of its context."""
        before = int(self.encoded.starts[window])
        return int(self.offsets[before + first, 0]), int(self.offsets[before + last, 1])

    def length_report(self) -> dict[str, Any]:
        """Also the number of rows whose question was cut, if there are any."""
        found = super().length_report()
        return {**found, "cut_questions": self.cut_questions} if self.cut_questions else found


class _Window(NamedTuple):
    ids: NDArray[np.int32]
    types: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    target: tuple[int, int]


class QuestionEncoder(LongTextEncoder):
    """Encodes questions with their contexts, in windows of at most `max_length` tokens."""

    def encode(
        self,
        texts: Sequence[tuple[str, ...]],
        answers: Sequence[tuple[Answer, ...]] | None = None,
        advance: Callable[[int], None] = lambda n_rows: None,
    ) -> AnswerWindows:
        """Encode questions and contexts, with the first answer of each if they are given."""
        made: list[_Window] = []
        owners: list[int] = []
        lengths: list[int] = []
        n_cut = 0
        for row, encoding in enumerate(self.encodings(texts, advance)):
            windows, is_cut = self._windows(encoding, answers[row] if answers else ())
            made += windows
            owners += [row] * len(windows)
            lengths.append(len(encoding.ids))
            n_cut += is_cut
        targets = np.array([window.target for window in made], np.int64).reshape(-1, 2)
        return AnswerWindows(
            encoded=self.joined([each.ids for each in made], [each.types for each in made]),
            owners=np.array(owners, dtype=np.int64),
            offsets=concatenated([each.offsets for each in made], np.zeros((0, 2), np.int64)),
            tokens=np.array(lengths, dtype=np.int32),
            targets=None if answers is None else targets,
            cut_questions=n_cut,
        )

    def _windows(self, encoding: Any, answers: tuple[Answer, ...]) -> tuple[list[_Window], bool]:
        """The windows of a row, and whether its question was cut."""
        ids = np.array(encoding.ids, dtype=np.int32)
        types = np.array(encoding.type_ids, dtype=np.uint8)
        parts = np.array([-1 if part is None else part for part in encoding.sequence_ids])
        offsets = np.array(encoding.offsets, dtype=np.int64)
        here = np.flatnonzero(parts == 1)
        first, after = (int(here[0]), int(here[-1]) + 1) if len(here) else (len(ids), len(ids))
        kept = np.arange(first)
        asked = np.flatnonzero(parts[:first] == 0)
        closing = np.arange(after, len(ids))
        excess = len(kept) + len(closing) - self.max_length // 2
        is_cut = excess > 0 and len(asked) > 0
        if is_cut:
            kept = np.setdiff1d(kept, asked[max(1, len(asked) - excess) :])
        room = max(1, self.max_length - len(kept) - len(closing))
        spans = np.full_like(offsets, -1)
        spans[first:after] = offsets[first:after]
        windows = []
        for begin in window_starts(after - first, room).tolist():
            context = np.arange(first + begin, min(first + begin + room, after))
            chosen = np.concatenate([kept, context, closing])
            target = _target(spans[chosen], answers[0] if answers else None)
            windows.append(_Window(ids[chosen], types[chosen], spans[chosen], target))
        return windows, is_cut


def _target(spans: NDArray[np.int64], answer: Answer | None) -> tuple[int, int]:
    """The first and the last token [tokens, 2] that share characters with an answer that lies
    whole in the window."""
    inside = np.flatnonzero(spans[:, 0] >= 0)
    if answer is None or not len(inside):
        return NO_ANSWER, NO_ANSWER
    start, end = answer.start, answer.start + len(answer.text)
    if spans[inside[0], 0] > start or spans[inside[-1], 1] < end:
        return NO_ANSWER, NO_ANSWER
    touching = inside[(spans[inside, 0] < end) & (spans[inside, 1] > start)]
    if not len(touching):  # the tokenizer drops its characters
        return NO_ANSWER, NO_ANSWER
    return int(touching[0]), int(touching[-1])
