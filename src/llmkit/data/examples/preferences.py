"""Pairs of responses to one prompt as token ids, with what the reference model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from llmkit.data.examples import packs
from llmkit.data.examples.packs import Packs, Responses
from llmkit.models.chat_template import Template
from llmkit.progress import Watch

if TYPE_CHECKING:
    from llmkit.data.records.conversations import Message
    from llmkit.data.records.preferences import Preference

_Rows = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs of a chosen and a rejected response, each after the same prompt.

    Batches pad both to one length and hold them in neighbouring rows. They are not packed: a batch
    is a number of pairs, and order by length leaves little padding.
    """

    responses: Responses
    """Chosen and rejected responses with their prompts, alternately."""
    numbers: NDArray[np.int64]
    """[pairs], the number of each among the given texts."""
    left_out: tuple[int, ...]
    """Pairs with a response that was truncated as a whole, or with two that became the same."""
    pad_id: int
    reference: NDArray[np.floating] | None = None
    """[pairs, 2], the log-probabilities of the responses under the reference model, in nats; None
    before they are computed."""

    lacking = "a response truncated as a whole, or both to the same"
    """What is wrong with the pairs that are skipped."""

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of a response with its prompt."""
        return self.responses.max_length

    @property
    def uncut(self) -> NDArray[np.int64]:
        """[given pairs], the tokens of the longer of both before truncation."""
        return np.asarray(self.responses.uncut.reshape(-1, 2).max(axis=1))

    def report(self) -> dict[str, Any]:
        """What is reported of lengths: see `Responses`."""
        return self.responses.report()

    @property
    def n_predictions(self) -> int:
        """Number of pairs."""
        return len(self)

    @property
    def fingerprint(self) -> str:
        """The sha256 of the ids and of which are predicted."""
        return self.responses.fingerprint

    @cached_property
    def rows(self) -> Packs:
        """The responses with their prompts, one in each row."""
        return packs.alone(self.responses, self.pad_id)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[pairs], the tokens of the longer of both."""
        return np.asarray(self.responses.lengths.reshape(-1, 2).max(axis=1))

    @cached_property
    def scored(self) -> NDArray[np.int64]:
        """[pairs, 2], the number of tokens of each response."""
        before = np.concatenate([[0], np.cumsum(self.responses.scored)])
        return np.asarray(np.diff(before[self.responses.starts]).reshape(-1, 2))

    def count(self, rows: _Rows) -> int:
        """Number of pairs in these rows: one for each except -1."""
        return int((np.asarray(rows) >= 0).sum())

    def longest_first(self) -> _Rows:
        """All pairs by decreasing length."""
        return np.argsort(-self.lengths, kind="stable")

    def batch(self, rows: _Rows) -> dict[str, torch.Tensor]:
        """The pairs as tensors: those of `Packs.batch` [2 * pairs, longest], chosen and rejected
        alternately; `reference` float32 [pairs, 2]; and `pairs` bool [pairs], False for row -1."""
        chosen = np.asarray(rows, dtype=np.int64)
        both = np.where(chosen[:, None] < 0, -1, 2 * chosen[:, None] + np.arange(2)).flatten()
        reference = np.zeros((len(chosen), 2), np.float32)
        if self.reference is not None:
            reference[chosen >= 0] = self.reference[chosen[chosen >= 0]]
        return {
            **self.rows.batch(both),
            "reference": torch.from_numpy(reference),
            "pairs": torch.from_numpy(chosen >= 0),
        }


def encode_preferences(
    some: Sequence[Preference], template: Template, max_length: int, watch: Watch
) -> EncodedPairs:
    """Encode rows with a chat template."""
    texts = [
        (_parts(each, each.messages, template), _parts(each, each.rejected, template))
        for each in some
    ]
    with watch("tokenizing", 2 * len(texts)) as advance:
        return encode_pairs(template.tokenizer, texts, max_length, template.end_id, advance)


def _parts(each: Preference, messages: Sequence[Message], template: Template) -> tuple[str, str]:
    """The text of the prompt, earlier turns included, and that of the response."""
    turns = [message._asdict() for message in messages]
    *before, response = template.examples(turns, f"{each.path} row {each.number}")[-1]
    return "".join(before), response


def encode_pairs(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[tuple[Sequence[str], Sequence[str]]],
    max_length: int,
    pad_id: int,
    advance: Callable[[int], None] = lambda n_texts: None,
) -> EncodedPairs:
    """Encode pairs of a prompt with the chosen and with the rejected response, truncated to
    `max_length` tokens."""
    whole = packs.encode_responses(
        tokenizer, [each for pair in texts for each in pair], max_length, None, advance
    )
    found = np.ones(2 * len(texts), dtype=np.bool_)
    found[list(whole.left_out)] = False
    places = (np.cumsum(found) - 1).reshape(-1, 2)  # [pairs, 2], among the encoded texts
    kept = [
        pair
        for pair in np.flatnonzero(found.reshape(-1, 2).all(axis=1)).tolist()
        if not _are_same(whole, *places[pair])
    ]
    numbers = np.array(kept, dtype=np.int64)
    return EncodedPairs(
        responses=whole.part(places[numbers].flatten()),
        numbers=numbers,
        left_out=tuple(sorted(set(range(len(texts))) - set(kept))),
        pad_id=pad_id,
    )


def _are_same(whole: Responses, one: int, other: int) -> bool:
    first, second = (
        whole.ids[whole.starts[each] : whole.starts[each + 1]] for each in (one, other)
    )
    return bool(np.array_equal(first, second))
