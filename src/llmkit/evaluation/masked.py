"""Pseudo-log-likelihood: each token of a text masked alone, as the rows of a masked model.

Salazar et al. 2020, arXiv 1910.14659. It compares masked models with one another; it is no
probability of the text, and never comparable to a causal model's perplexity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from llmkit.evaluation.likelihood import Batch
from llmkit.evaluation.windows import Places, Tokens

SCORED = (
    "every token of the text, each masked alone and predicted from those on both sides: "
    "pseudo-log-likelihood (Salazar et al. 2020), not comparable to a perplexity"
)
AVERAGE = "sum of the negative pseudo-log-likelihoods / number of tokens"


@dataclass(frozen=True)
class MaskedRows:
    """Row n has the n-th token of the text masked, in the piece of its document that it is in.

    A document longer than `window` is cut into pieces of equal length; each piece stands between
    the opening and the closing token of the tokenizer.
    """

    tokens: Tokens
    window: int
    mask: int
    """The id of the mask token."""

    def __len__(self) -> int:
        return int(self._ends[-1])

    def lengths(self, numbers: Places) -> Places:
        """Tokens in each of the rows."""
        begin, end, _ = self._pieces(numbers)
        return end - begin + 2

    def batch(self, numbers: Places) -> Batch:
        """These rows, padded to the longest."""
        begin, end, target = self._pieces(numbers)
        columns = np.arange(int((end - begin).max()) + 2)
        sources = begin[:, None] - 1 + columns  # [rows, width], in the token stream
        last = (end - begin)[:, None] + 1
        ids = self.tokens.ids[np.minimum(sources, end[:, None])].astype(np.int64)
        ids[:, 0] = self.tokens.opening
        ids = np.where(columns == last, self.tokens.closing, ids)
        chosen = sources == target[:, None]
        targets = ids[chosen]
        ids[chosen] = self.mask
        return Batch(
            inputs={
                "input_ids": torch.from_numpy(ids),
                "attention_mask": torch.from_numpy((columns <= last).astype(np.int64)),
            },
            chosen=torch.from_numpy(chosen),
            targets=torch.from_numpy(targets),
            places=target - 1,
        )

    @cached_property
    def _ends(self) -> Places:
        """The number of text tokens up to the end of each document."""
        starts = np.append(self.tokens.starts, len(self.tokens.ids))
        framing = np.full(len(self.tokens.starts), 2)
        if self.tokens.opening == self.tokens.closing:
            framing[:-1] = 1
        return np.cumsum(np.diff(starts) - framing)

    def _pieces(self, numbers: Places) -> tuple[Places, Places, Places]:
        """Where the piece of each row begins and ends in the stream, and what is masked in it."""
        document = np.searchsorted(self._ends, numbers, side="right")
        before = np.where(document > 0, self._ends[document - 1], 0)
        length = self._ends[document] - before
        count = -(-length // (self.window - 2))
        inside = numbers - before
        piece = inside * count // length
        first = self.tokens.starts[document] + 1
        begin, end = first + -(-piece * length // count), first + -(-(piece + 1) * length // count)
        return begin, end, first + inside
