"""Pairs of segments of a token stream, for BERT's two objectives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from llmkit.data.examples.blocks import UNSCORED, MaskedBlocks
from llmkit.data.text.token_file import Places
from llmkit.models import tokenizer as tokenizers

NEXT, OTHER = 0, 1
"""The labels of a second segment that continues the first, and of one from elsewhere, as in
transformers."""

_STOPS = tuple(".!?\u2026\u3002\uff01\uff1f\uff0e\u061f\u06d4\u0964\u0965\u1362\u17d4\u104b")
"""Characters that end a sentence, in the scripts that have their own."""
_CLOSERS = "\"')]}\u00bb\u2019\u201d\u300d\u300f\uff09\u3011"
"""Quotes and brackets that may follow them."""

_TOKENS_AT_ONCE = 1 << 22

_Flags = NDArray[np.bool_]


class SentenceMarks(NamedTuple):
    """How tokens divide a text into sentences, bool [ids] each."""

    stops: _Flags
    """Whether a sentence ends after the token, unless the next one continues its word."""
    breaks: _Flags
    """Whether the token holds a line break, after which a sentence ends."""
    inner: _Flags
    """Whether no sentence begins with the token: white space and special tokens."""
    continues: _Flags
    """Whether the token continues the word before it."""

    def begin(self, before: Places, after: Places) -> _Flags:
        """Whether a sentence begins between each two neighbouring ids."""
        ended = self.breaks[before] | (self.stops[before] & ~self.continues[after])
        return np.asarray(ended & ~self.inner[after])


def sentence_marks(tokenizer: PreTrainedTokenizerFast) -> SentenceMarks:
    """Where a text may be divided into sentences, for each id of a tokenizer: after a full stop or
    its equivalent, and after a line break if the tokenizer keeps it."""
    special = tokenizers.special_tokens(tokenizer)
    ids = [[number] for number in range(len(special))]
    texts = tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)
    stops = [text.rstrip().rstrip(_CLOSERS).endswith(_STOPS) for text in texts]
    breaks = ["\n" in text for text in texts]
    blank = [not text.strip() for text in texts]
    continues, _ = tokenizers.word_edges(tokenizer)
    return SentenceMarks(
        np.array(stops) & ~special,
        np.array(breaks) & ~special,
        np.array(blank) | special,
        continues,
    )


class _Sentences(NamedTuple):
    """The sentences of all documents, int64 [sentences] each."""

    begins: Places
    ends: Places
    first: Places
    """The number of the first sentence of the same document."""
    stop: Places
    """One past the number of its last sentence."""


class _Pairs(NamedTuple):
    """The segments of some rows, int64 [rows] each: where they begin and end in the stream."""

    begin: Places
    end: Places
    second_begin: Places
    second_end: Places
    """Equal to `second_begin` in a row with one segment."""
    label: Places
    """UNSCORED in a row with one segment."""


@dataclass(frozen=True)
class SentencePairs(MaskedBlocks):
    """Examples of two segments, of which some tokens are predicted, and whether the second segment
    continues the first (Devlin et al. 2019, arXiv 1810.04805, appendix A.2).

    A document is cut into passages of whole sentences that fill a row; a sentence longer than half
    a row is divided. Row e·n+k is passage k in epoch e. The passage is split between two sentences;
    in half of the occurrences the second part is replaced by sentences of another document, or of
    another passage if there is only one document. Split, choice and masks depend only on `seed` and
    row. A passage of one sentence is read alone: its tokens are predicted, but no next sentence.
    """

    marks: SentenceMarks

    def __len__(self) -> int:
        return len(self._passages) - 1

    @property
    def identity(self) -> tuple[object, ...]:
        """What the predictions depend on besides the text."""
        return (*super().identity, "next sentence")

    def pairs(self, rows: Sequence[int] | Places) -> int:
        """Number of these rows with two segments."""
        return int((self._pairs(np.asarray(rows, dtype=np.int64)).label != UNSCORED).sum())

    def batch(self, rows: Sequence[int] | Places) -> dict[str, torch.Tensor]:
        """The rows as `MaskedBlocks.batch` has them, with `token_type_ids` [rows, block_size] and
        `next_sentence` [rows]: NEXT, OTHER, or UNSCORED in a row with one segment."""
        found = self._pairs(np.asarray(rows, dtype=np.int64))
        columns = np.arange(self.block_size)
        before = (found.end - found.begin + 2)[:, None]  # tokens up to the second segment
        after = before + (found.second_end - found.second_begin + 1)[:, None]
        types = (columns >= before) & (columns < after) & (found.label != UNSCORED)[:, None]
        return {
            **super().batch(rows),
            "token_type_ids": torch.from_numpy(types.astype(np.int64)),
            "next_sentence": torch.from_numpy(found.label),
        }

    @property
    def _room(self) -> int:
        """Number of tokens of the text in a row."""
        return self.block_size - 3

    def _framed(self, rows: Places) -> tuple[Places, Places]:
        """The tokens [rows, block_size] before masking, and the number in each row."""
        found, stream = self._pairs(rows), self.tokens
        columns = np.arange(self.block_size)
        first = (found.end - found.begin)[:, None]
        second = (found.second_end - found.second_begin)[:, None]
        in_second = columns >= first + 2
        places = np.where(
            in_second,
            found.second_begin[:, None] + columns - first - 2,
            found.begin[:, None] + columns - 1,
        )
        ids = stream.ids[np.clip(places, 0, len(stream.ids) - 1)].astype(np.int64)
        ids[:, 0] = stream.opening
        ids[(columns == first + 1) | (columns == first + second + 2)] = stream.closing
        paired = found.label != UNSCORED
        lengths = first[:, 0] + 2 + np.where(paired, second[:, 0] + 1, 0)
        lengths[rows < 0] = 0
        ids[columns >= lengths[:, None]] = self.vocabulary.pad_id
        return ids, lengths

    def _pairs(self, rows: Places) -> _Pairs:
        if len(rows) and rows.min() < -1:
            raise IndexError(f"there is no row {rows.min()}")
        begins, ends, first, stop = self._sentences
        passage = rows % len(self)
        start, end = self._passages[passage], self._passages[passage + 1]
        # What cannot replace the second part: its document, or its passage in the only document.
        alone = stop[start] - first[start] == len(begins)
        own, own_stop = np.where(alone, start, first[start]), np.where(alone, end, stop[start])
        others = len(begins) - (own_stop - own)
        paired = (end - start > 1) & (others > 0) & (rows >= 0)
        draws = self._draws(rows, "pair", 3)
        middle = start + 1 + _below(draws[:, 0], end - start - 1)
        middle = np.where(paired, middle, end)
        drawn = _below(draws[:, 1], others)
        drawn = np.where(paired, drawn + np.where(drawn >= own, own_stop - own, 0), 0)
        label = np.where(draws[:, 2] >> np.uint64(63) == OTHER, OTHER, NEXT)
        continued = np.where(paired, begins[np.minimum(middle, len(begins) - 1)], 0)
        continued_end = np.where(paired, ends[end - 1], 0)
        # Whole sentences up to the end of the row, or of the part that they replace.
        room = self._room - (ends[middle - 1] - begins[start])
        room = np.where(end == stop[start], continued_end - continued, room)
        reached = np.searchsorted(ends, begins[drawn] + room, side="right")
        reached = np.minimum(reached, stop[drawn])
        whole = ends[np.maximum(reached - 1, 0)]
        drawn_end = np.where(reached > drawn, whole, begins[drawn] + room)
        other = paired & (label == OTHER)
        return _Pairs(
            begins[start],
            ends[middle - 1],
            np.where(other, begins[drawn], continued),
            np.where(other, drawn_end, continued_end),
            np.where(paired, label, UNSCORED),
        )

    @cached_property
    def _sentences(self) -> _Sentences:
        stream = self.tokens
        two_ids = stream.opening != stream.closing
        starts = np.asarray(stream.starts) + 1
        stops = np.append(starts[1:] - 1 - two_ids, len(stream.ids) - 1)
        starts, stops = starts[starts < stops], stops[starts < stops]
        found = np.union1d(np.concatenate([*self._begins(), starts]), starts)
        document = np.searchsorted(starts, found, side="right") - 1
        inside = (document >= 0) & (found < stops[document])
        found, document = found[inside], document[inside]
        begins, ends = self._divided(
            found, np.minimum(np.append(found[1:], stops[-1]), stops[document])
        )
        document = np.searchsorted(starts, begins, side="right") - 1
        first = np.searchsorted(document, document, side="left")
        return _Sentences(begins, ends, first, np.searchsorted(document, document, side="right"))

    def _begins(self) -> Iterator[Places]:
        """The places at which sentences begin, also across the ends of documents."""
        ids = self.tokens.ids
        for first in range(0, len(ids) - 1, _TOKENS_AT_ONCE):
            some = np.asarray(ids[first : first + _TOKENS_AT_ONCE + 1])
            yield first + 1 + np.flatnonzero(self.marks.begin(some[:-1], some[1:]))

    def _divided(self, begins: Places, ends: Places) -> tuple[Places, Places]:
        """The sentences, those longer than half a row divided into equal parts."""
        lengths, longest = ends - begins, max(1, self._room // 2)
        parts = -(-lengths // longest)
        which = np.repeat(np.arange(len(begins)), parts)
        number = np.arange(len(which)) - np.repeat(np.cumsum(parts) - parts, parts)
        offsets = [(number + each) * lengths[which] // parts[which] for each in (0, 1)]
        return begins[which] + offsets[0], begins[which] + offsets[1]

    @cached_property
    def _passages(self) -> Places:
        """[passages + 1], the number of the first sentence of each, and of all sentences."""
        begins, ends, _, stop = self._sentences
        reached = np.searchsorted(ends, begins + self._room, side="right")
        following = np.minimum(reached, stop).tolist()
        found = [0]
        while found[-1] < len(begins):
            found.append(following[found[-1]])
        return np.array(found, np.int64)


def _below(draws: NDArray[np.uint64], limits: Places) -> Places:
    """Random numbers below each limit, 0 where the limit is not above 0."""
    found: Places = (draws % np.maximum(limits, 1).astype(np.uint64)).astype(np.int64)
    return found
