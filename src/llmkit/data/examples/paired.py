"""Source and target texts as padded batches for an encoder-decoder model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.data.examples.blocks import UNSCORED
from llmkit.data.examples.encoded import Encoded

_Rows = Sequence[int] | NDArray[np.int64]

Shift = Callable[[Tensor], Tensor]
"""Target ids [rows, length], UNSCORED at padding -> what the decoder reads to predict them."""


def shift_of(model: PreTrainedModel) -> Shift:
    """How the decoder of a model reads targets, as in transformers: most begin with their
    `decoder_start_token_id`, mBART's with the code of the language at the end of the targets.

    The weights are not used, so the model may be on the meta device.
    """
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return lambda labels: own(labels=labels)
    start, pad = model.config.decoder_start_token_id, model.config.pad_token_id

    def shifted(labels: Tensor) -> Tensor:
        ids = labels.roll(1, dims=1)
        ids[:, 0] = start
        return ids.masked_fill(ids == UNSCORED, pad)

    return shifted


@dataclass(frozen=True)
class PairedExamples:
    """Source texts with the target texts to predict from them."""

    sources: Encoded
    targets: Encoded
    shift: Shift

    def __len__(self) -> int:
        return len(self.sources)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[rows], the tokens of source and target together."""
        return self.sources.lengths + self.targets.lengths

    @property
    def n_predictions(self) -> int:
        """Number of predictions in all rows."""
        return len(self.targets.ids)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the ids."""
        whole = hashlib.sha256()
        for side in (self.sources, self.targets):
            whole.update(side.ids.tobytes() + side.starts.tobytes())
        return whole.hexdigest()

    def count(self, rows: _Rows) -> int:
        """Number of predictions in these rows: one for each token of a target."""
        chosen = np.asarray(rows, dtype=np.int64)
        return int(self.targets.lengths[chosen[chosen >= 0]].sum())

    def longest_first(self) -> NDArray[np.int64]:
        """All rows by decreasing length, so that neighbours need little padding."""
        return np.lexsort((-self.targets.lengths, -self.sources.lengths))

    def batch(self, rows: _Rows) -> dict[str, Tensor]:
        """The rows as tensors, padded on the right.

        `input_ids` and `attention_mask` [rows, longest source], `decoder_input_ids` and `targets`
        [rows, longest target], all int64; `targets` is UNSCORED at padding and in row -1.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        ids = self.targets.aligned(np.maximum(chosen, 0), self.targets.ids, UNSCORED)
        targets = torch.from_numpy(ids)
        batch = self.sources.batch(chosen)
        batch["decoder_input_ids"] = self.shift(targets)
        batch["targets"] = targets.masked_fill(torch.from_numpy(chosen < 0)[:, None], UNSCORED)
        return batch

    def report(self) -> dict[str, Any]:
        """Percentiles of the lengths before truncation, and the share of truncated texts."""
        return {"source": self.sources.length_report(), "target": self.targets.length_report()}
