"""The rows a model is scored on: windows of a token stream, or tokens masked one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from llmkit.data.text.token_file import Places, TokenFile
from llmkit.evaluation.likelihood import ScoringBatch
from llmkit.evaluation.windows import Spans, Windows

MASKED_SCORED = (
    "every token of the text, each masked alone and predicted from those on both sides: "
    "pseudo-log-likelihood (Salazar et al. 2020), not comparable to a perplexity"
)
MASKED_AVERAGE = "sum of the negative pseudo-log-likelihoods / number of tokens"


@dataclass(frozen=True)
class CausalRows:
    """Each row is a window, padded on the right; causal attention never sees the padding."""

    windows: Windows

    def __len__(self) -> int:
        return len(self.windows)

    def lengths(self, numbers: Places) -> Places:
        """Tokens in each of the rows."""
        spans = self.windows.spans(numbers)
        return spans.stop - spans.start + self._added(spans)

    def batch(self, numbers: Places) -> ScoringBatch:
        """These rows, padded to the longest."""
        tokens, spans = self.windows.tokens, self.windows.spans(numbers)
        added = self._added(spans)
        columns = np.arange(int((spans.stop - spans.start + added).max()))
        places = spans.start[:, None] + columns - added[:, None]  # [rows, width]
        inside = places < spans.stop[:, None]
        ids = np.full(places.shape, tokens.closing, dtype=np.int64)
        ids[inside] = tokens.ids[places[inside]]
        ids[added > 0, 0] = tokens.opening
        chosen = inside & (places >= spans.first[:, None])
        chosen[chosen] = self.windows.scored(places[chosen])
        scored = places[chosen]
        return ScoringBatch(
            inputs={"input_ids": torch.from_numpy(ids), "real": torch.from_numpy(inside)},
            chosen=torch.from_numpy(chosen),
            targets=torch.from_numpy(tokens.ids[scored + 1].astype(np.int64)),
            places=scored,
        )

    def _added(self, spans: Spans) -> Places:
        """1 where the opening token is prepended to a window that does not begin with it."""
        wanted = self.windows.protocol.bos == "window"
        return np.where(spans.opened, 0, int(wanted))


@dataclass(frozen=True)
class MaskedRows:
    """Row n masks the n-th token of the text, within its piece of the document.

    The sum is the pseudo-log-likelihood (Salazar et al. 2020, arXiv 1910.14659). It compares masked
    models with one another; it is not a probability of the text, and never comparable to a causal
    model's perplexity.

    A document longer than `window` is cut into pieces of equal length; each piece is framed by the
    opening and the closing token of the tokenizer.
    """

    tokens: TokenFile
    window: int
    mask: int
    """The id of the mask token."""

    def __len__(self) -> int:
        return int(self._ends[-1])

    def lengths(self, numbers: Places) -> Places:
        """Tokens in each of the rows."""
        begin, end, _ = self._pieces(numbers)
        return end - begin + 2

    def batch(self, numbers: Places) -> ScoringBatch:
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
        return ScoringBatch(
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
        """The begin and end of each row's piece in the stream, and the masked place."""
        document = np.searchsorted(self._ends, numbers, side="right")
        before = np.where(document > 0, self._ends[document - 1], 0)
        length = self._ends[document] - before
        count = -(-length // (self.window - 2))
        inside = numbers - before
        piece = inside * count // length
        first = self.tokens.starts[document] + 1
        begin, end = first + -(-piece * length // count), first + -(-(piece + 1) * length // count)
        return begin, end, first + inside
