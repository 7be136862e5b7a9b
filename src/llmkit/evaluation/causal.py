"""Windows of a token stream as the rows of a causal model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from llmkit.evaluation.likelihood import Batch
from llmkit.evaluation.windows import Places, Spans, Windows


@dataclass(frozen=True)
class CausalRows:
    """Each row is a window; what stands after its end is never seen by what is before."""

    windows: Windows

    def __len__(self) -> int:
        return len(self.windows)

    def lengths(self, numbers: Places) -> Places:
        """Tokens in each of the rows."""
        spans = self.windows.spans(numbers)
        return spans.stop - spans.start + self._added(spans)

    def batch(self, numbers: Places) -> Batch:
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
        return Batch(
            inputs={"input_ids": torch.from_numpy(ids), "real": torch.from_numpy(inside)},
            chosen=torch.from_numpy(chosen),
            targets=torch.from_numpy(tokens.ids[scored + 1].astype(np.int64)),
            places=scored,
        )

    def _added(self, spans: Spans) -> Places:
        """1 where the opening token is put before a window that does not begin with it."""
        wanted = self.windows.protocol.bos == "window"
        return np.where(spans.opened, 0, int(wanted))
