"""Windows of token ids over texts, which may be longer than a model reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from llmkit.data.examples.encoded import Encoded, TextEncoder, length_report
from llmkit.models.control_tokens import text_only

_OVERLAP = 4
"""Two windows of a long text share the tokens of a window divided by this."""


@dataclass(frozen=True)
class WindowRows:
    """One window for each short text, and several that overlap for a long one."""

    encoded: Encoded
    """The windows, without targets."""
    tokens: NDArray[np.int32]
    """[texts], the number of tokens of each."""

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[windows], in tokens."""
        return self.encoded.lengths

    @property
    def pad_id(self) -> int:
        """The id that batches are padded with."""
        return self.encoded.pad_id

    def longest_first(self) -> NDArray[np.int64]:
        """All windows by decreasing length, so that neighbours need little padding."""
        return self.encoded.longest_first()

    def length_report(self) -> dict[str, Any]:
        """Percentiles of the lengths of texts in tokens, and the number of windows."""
        return {**length_report(self.tokens, self.tokens), "windows": len(self)}


class LongTextEncoder(TextEncoder):
    """Encodes whole texts or pairs of texts, of which windows of at most `max_length` tokens are
    made."""

    at_once = 1024

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
        super().__init__(tokenizer, max_length)
        self.backend = text_only(tokenizer)

    def encodings(
        self, texts: Sequence[tuple[str, ...]], advance: Callable[[int], None]
    ) -> Iterator[Any]:
        """The encoding of each text, with offsets."""
        for some in self.chunks(texts, advance):
            # Unlike `encode_batch_fast`, this one tracks offsets.
            yield from self.backend.encode_batch([each if each[1:] else each[0] for each in some])

    def joined(
        self, ids: Sequence[NDArray[np.int32]], types: Sequence[NDArray[np.uint8]] = ()
    ) -> Encoded:
        """Windows from the ids of each, and from their types, which are 0 if none are given."""
        given = types or [np.zeros(len(each), np.uint8) for each in ids]
        lengths = np.array([len(each) for each in ids], np.int32)
        return Encoded(
            ids=concatenated(ids, np.zeros(0, np.int32)),
            types=concatenated(given, np.zeros(0, np.uint8)) if self.gives_types else None,
            starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]),
            uncut=lengths,
            targets=None,
            pad_id=self.pad_id,
        )


def concatenated(parts: Sequence[NDArray[Any]], none: NDArray[Any]) -> NDArray[Any]:
    """Arrays one after another; `none` if there are no arrays."""
    return np.concatenate([*parts, none])


def window_starts(n_tokens: int, room: int) -> NDArray[np.int64]:
    """The first token of each window of `room` tokens; the last one ends with the text."""
    last = max(0, n_tokens - room)
    return np.array([*range(0, last, room - room // _OVERLAP), last], dtype=np.int64)
