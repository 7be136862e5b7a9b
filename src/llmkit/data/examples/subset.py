"""A random subset of examples, for held-out text that takes too long as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.data.examples.mixture import Mixture
from llmkit.data.examples.order import permutation
from llmkit.data.text.token_file import TokenFile

_Rows = Sequence[int] | NDArray[np.int64]

_KEY = (0, 1)  # the same for every seed, so that runs are comparable


@dataclass(frozen=True)
class Subset:
    """A subset of the rows of other examples, in order; row -1 is padding."""

    examples: Any
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> TokenFile:
        """The tokens of all examples."""
        return self.examples.tokens  # type: ignore[no-any-return]

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return int(self.examples.block_size)

    @property
    def n_bytes(self) -> float:
        """Number of UTF-8 bytes, estimated by the share of predictions."""
        whole = self.examples.count(range(len(self.examples)))
        return float(self.examples.n_bytes * self.count(range(len(self))) / max(1, whole))

    def count(self, rows: _Rows) -> int:
        """Number of predictions in these rows."""
        return int(self.examples.count(self._of(rows)))

    def batch(self, rows: _Rows) -> dict[str, torch.Tensor]:
        """The rows as tensors."""
        batch: dict[str, torch.Tensor] = self.examples.batch(self._of(rows))
        return batch

    def longest_first(self) -> NDArray[np.int64]:
        """All rows by decreasing length, as in the full set."""
        place = np.full(len(self.examples), -1, dtype=np.int64)
        place[self.rows] = np.arange(len(self.rows))
        ordered: NDArray[np.int64] = place[np.asarray(self.examples.longest_first())]
        return ordered[ordered >= 0]

    def _of(self, rows: _Rows) -> NDArray[np.int64]:
        chosen = np.asarray(rows, dtype=np.int64)
        return np.where(chosen < 0, -1, self.rows[chosen])


def drawn(examples: Any, n: int) -> Any:
    """About `n` of the examples, sampled uniformly; from a mixture, the same share of each domain,
    at least one. Deterministic for the same examples."""
    if n >= len(examples):
        return examples
    if isinstance(examples, Mixture):
        share = n / len(examples)
        parts = {
            name: drawn(part, max(1, round(share * len(part))))
            for name, part in examples.domains.items()
        }
        return replace(examples, domains=parts)
    order = permutation(len(examples), _KEY)
    return Subset(examples, np.sort(order(np.arange(n, dtype=np.int64))))
