"""Some of a set of examples, drawn once at random: held-out text that takes too long as a whole."""

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

_KEY = (0, 1)  # the same for every seed of a run, so that runs compare


@dataclass(frozen=True)
class Subset:
    """Rows of another set of examples, in their order; row -1 stands for none, as in that."""

    examples: Any
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> TokenFile:
        """The tokens of the whole."""
        return self.examples.tokens  # type: ignore[no-any-return]

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return int(self.examples.block_size)

    @property
    def n_bytes(self) -> float:
        """UTF-8 bytes of the text, by the share of predictions: those of a row are unknown."""
        whole = self.examples.count(range(len(self.examples)))
        return float(self.examples.n_bytes * self.count(range(len(self))) / max(1, whole))

    def count(self, rows: _Rows) -> int:
        """Predictions in these rows."""
        return int(self.examples.count(self._of(rows)))

    def batch(self, rows: _Rows) -> dict[str, torch.Tensor]:
        """The rows as tensors."""
        batch: dict[str, torch.Tensor] = self.examples.batch(self._of(rows))
        return batch

    def longest_first(self) -> NDArray[np.int64]:
        """All rows in the order that the whole has them in."""
        place = np.full(len(self.examples), -1, dtype=np.int64)
        place[self.rows] = np.arange(len(self.rows))
        ordered: NDArray[np.int64] = place[np.asarray(self.examples.longest_first())]
        return ordered[ordered >= 0]

    def _of(self, rows: _Rows) -> NDArray[np.int64]:
        chosen = np.asarray(rows, dtype=np.int64)
        return np.where(chosen < 0, -1, self.rows[chosen])


def drawn(examples: Any, n: int) -> Any:
    """About `n` of the examples, each as likely as any other; of a mixture, of each domain its
    share, and at least one. The same for the same examples."""
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
