"""Tagged rows, and their token ids in overlapping windows in which every word is predicted once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from llmkit.data.examples.encoded import UNLABELLED
from llmkit.data.examples.windows import LongTextEncoder, WindowRows, concatenated, window_starts
from llmkit.data.records import splits
from llmkit.data.records.tagging.tags import Entities, TagSet
from llmkit.data.records.tagging.words import WordSpans, unmarked_text

NO_WORD = -1
"""The number of a word where there is none."""

_Rows = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class TaggedTable:
    """Tagged rows in memory."""

    texts: Sequence[tuple[str, ...]]
    """One text for each row, as the model reads it."""
    words: Sequence[WordSpans]
    targets: NDArray[np.int64]
    """[words of all rows], the number of each tag."""
    labels: TagSet
    places: Sequence[tuple[str, int]]
    """File and row number of each row, counted from 1."""

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """[rows + 1], the number of the first word of each row."""
        starts = np.zeros(len(self.words) + 1, dtype=np.int64)
        np.cumsum([len(words) for words in self.words], out=starts[1:])
        return starts

    @property
    def entities(self) -> Entities:
        """The entities of all rows, in order."""
        return self.labels.entities(self.targets, self.starts[:-1])

    @property
    def sides(self) -> list[tuple[str, ...]]:
        """[rows], the texts that stay on one side when rows are held out: those without marks."""
        return [(unmarked_text(text),) for (text,) in self.texts]

    def strata(self) -> NDArray[np.int64]:
        """[rows], the stratum of each row: the rarest of its types of entities, or of its tags."""
        kinds, first = self.targets, np.arange(len(self.targets))
        if self.labels.has_entities:
            kinds, first = self.entities.kind, self.entities.first
        found = np.zeros((len(self), len(self.labels.classes)), dtype=np.bool_)
        found[np.searchsorted(self.starts, first, side="right") - 1, kinds] = True
        return splits.rarest_of(found)

    def counts(self) -> dict[str, Any]:
        """The number of rows, of words, and of the entities of each type or words of each tag."""
        kinds = self.entities.kind if self.labels.has_entities else self.targets
        numbers = np.bincount(kinds, minlength=len(self.labels.classes)).tolist()
        classes = dict(zip(self.labels.classes, numbers, strict=True))
        return {"rows": len(self), "words": len(self.targets), "classes": classes}

    @property
    def fingerprint(self) -> str:
        """The sha256 of texts, words, tags and the names of the tags, in order."""
        whole = hashlib.sha256(repr((self.labels.scheme, self.labels.names)).encode())
        for (text,), words in zip(self.texts, self.words, strict=True):
            whole.update(f"{len(text)} {len(words)} {text}".encode())
            whole.update(np.ascontiguousarray(words).tobytes())
        whole.update(self.targets.tobytes())
        return whole.hexdigest()

    def part(self, chosen: NDArray[np.bool_]) -> TaggedTable:
        """The chosen rows, in order."""
        rows = np.flatnonzero(chosen).tolist()
        return TaggedTable(
            [self.texts[row] for row in rows],
            [self.words[row] for row in rows],
            self.targets[np.repeat(chosen, np.diff(self.starts))],
            self.labels,
            [self.places[row] for row in rows],
        )


@dataclass(frozen=True)
class TokenWindows(WindowRows):
    """Windows of token ids over texts; a long text has several, and each word is predicted in the
    window where it is most central, by one of its tokens."""

    owners: NDArray[np.int64]
    """[tokens of all windows], the number of the word that a token predicts, or NO_WORD."""
    sources: NDArray[np.int64]
    """[words], the word whose token predicts each word: itself; an earlier one if they share a
    token; NO_WORD if the tokenizer drops it."""
    targets: NDArray[np.int64] | None
    """[words]"""

    @property
    def id_bytes(self) -> bytes:
        """The token ids of all windows, and the words that they predict."""
        return self.encoded.id_bytes + self.owners.tobytes()

    @cached_property
    def _predicted(self) -> NDArray[np.int64]:
        """[windows], the number of predictions of each."""
        before = np.zeros(len(self.owners) + 1, dtype=np.int64)
        np.cumsum(self.owners != NO_WORD, out=before[1:])
        return np.asarray(np.diff(before[self.encoded.starts]))

    def count(self, rows: _Rows) -> int:
        """Number of predictions in these windows: one for each word."""
        chosen = np.asarray(rows, dtype=np.int64)
        return int(self._predicted[chosen[chosen >= 0]].sum())

    def labels(self, rows: _Rows) -> NDArray[np.int64]:
        """The targets that are predicted in these windows."""
        assert self.targets is not None
        owners = self.encoded.aligned(rows, self.owners, NO_WORD)
        return np.asarray(self.targets[owners[owners != NO_WORD]])

    def batch(self, rows: _Rows) -> dict[str, torch.Tensor]:
        """The windows as tensors [rows, longest of them], padded on the right: those of `Encoded`,
        `words` with the number of the word that each token predicts, or NO_WORD, and if there are
        targets, `labels` with their numbers, or UNLABELLED. Row -1 predicts nothing."""
        batch = self.encoded.batch(rows)
        words = self.encoded.aligned(rows, self.owners, NO_WORD)
        batch["words"] = torch.from_numpy(words)
        if self.targets is not None:
            labels = np.where(words == NO_WORD, UNLABELLED, self.targets[words])
            batch["labels"] = torch.from_numpy(labels)
        return batch

    def completed(self, tags: NDArray[np.int64], known: TagSet) -> NDArray[np.int64]:
        """The tags [words], of which the model predicts only those of words that have a token: a
        word that shares one continues the tag of the word before it, and one without any is outside
        of entities, or gets the tag of number 0."""
        found = tags.copy()
        shared = (self.sources != np.arange(len(tags))) & (self.sources != NO_WORD)
        found[shared] = known.continued[tags[self.sources[shared]]]
        found[self.sources == NO_WORD] = known.outside or 0
        return found

    def length_report(self) -> dict[str, Any]:
        """Also the number of words without a token."""
        without = int((self.sources == NO_WORD).sum())
        return {**super().length_report(), "words_without_token": without}


class WindowEncoder(LongTextEncoder):
    """Encodes running texts in windows of at most `max_length` tokens, and finds the token that
    predicts each word: its first, or its last for a model that sees only the tokens before."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, max_length: int, by_last: bool = False
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.by_last = by_last

    def encode(
        self,
        texts: Sequence[tuple[str, ...]],
        words: Sequence[WordSpans],
        targets: NDArray[np.int64] | None = None,
        advance: Callable[[int], None] = lambda n_rows: None,
    ) -> TokenWindows:
        """Encode texts with their words; `advance` is called with the number encoded."""
        parts: list[_Part] = []
        sources: list[NDArray[np.int64]] = []
        lengths: list[int] = []
        n_words = 0
        for encoding, own in zip(self.encodings(texts, advance), words, strict=True):
            made, source = self._windows(encoding, own, n_words)
            parts += made
            sources.append(np.where(source == NO_WORD, NO_WORD, source + n_words))
            lengths.append(len(encoding.ids))
            n_words += len(own)
        return TokenWindows(
            encoded=self.joined([part.ids for part in parts]),
            owners=concatenated([part.owners for part in parts], np.zeros(0, np.int64)),
            sources=concatenated(sources, np.zeros(0, np.int64)),
            tokens=np.array(lengths, dtype=np.int32),
            targets=targets,
        )

    def _windows(
        self, encoding: Any, words: WordSpans, n_before: int
    ) -> tuple[list[_Part], NDArray[np.int64]]:
        """The windows of a text that predict words, and the source of each word within the text."""
        ids = np.array(encoding.ids, dtype=np.int32)
        content = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
        if not len(content) or not len(words):
            return [], np.full(len(words), NO_WORD, dtype=np.int64)
        first, after = int(content[0]), int(content[-1]) + 1
        opening, closing = ids[:first], ids[after:]
        offsets = np.array(encoding.offsets, dtype=np.int64)[first:after]
        tokens, sources = align_words(offsets, words, self.by_last)
        room = max(1, self.max_length - len(opening) - len(closing))
        begins = window_starts(after - first, room)
        middles = (begins[1:] + begins[:-1] + room + 1) // 2
        own = np.flatnonzero(tokens != NO_WORD)
        window = np.searchsorted(middles, tokens[own], side="right")
        made = []
        for number, begin in enumerate(begins.tolist()):
            here = own[window == number]
            if not len(here):
                continue
            part = ids[first + begin : first + min(begin + room, after - first)]
            owners = np.full(len(opening) + len(part) + len(closing), NO_WORD, dtype=np.int64)
            owners[len(opening) + tokens[here] - begin] = here + n_before
            made.append(_Part(np.concatenate([opening, part, closing]), owners))
        return made, sources


class _Part(NamedTuple):
    """One window: its ids, and the words that they predict."""

    ids: NDArray[np.int32]
    owners: NDArray[np.int64]


def align_words(
    offsets: NDArray[np.int64], words: WordSpans, by_last: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[words] each: the token that predicts a word, and the word whose token predicts it.

    A token belongs to the word that it begins in; the white space before a word, which some
    tokenizers count to its first token, does not matter. Both are NO_WORD for a word without any
    token; a word whose tokens all belong to an earlier one has the source of the word before it.
    """
    begin, end = words[:, 0].astype(np.int64), words[:, 1].astype(np.int64)
    before = np.concatenate([[0], end[:-1]])  # the end of the word before
    starts, ends = np.maximum.accumulate(offsets[:, 0]), np.maximum.accumulate(offsets[:, 1])
    n_tokens = len(offsets)
    padded = np.append(starts, np.iinfo(np.int64).max)
    first = np.searchsorted(ends, begin, side="right")
    touches = (padded[first] < end) & (begin < end)
    is_shared = touches & (padded[first] < before)
    following = np.minimum(first + is_shared, n_tokens)
    is_own = touches & (padded[following] < end)
    chosen = np.searchsorted(starts, end, side="left") - 1 if by_last else following
    sources = np.where(is_own, np.arange(len(words)), NO_WORD)
    for word in np.flatnonzero(is_shared & ~is_own).tolist():
        sources[word] = sources[word - 1]
    return np.where(is_own, chosen, NO_WORD), sources
