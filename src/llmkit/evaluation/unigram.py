"""The unigram model: what token frequencies alone predict, the least that a model must beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.data.blocks import UNSCORED

MOST_TOKENS = 4_000_000
"""Tokens of the training text that frequencies are counted on; more would not move them."""

_ROWS_AT_ONCE = 256


class Examples(Protocol):
    """What is needed of a set of examples with `targets`."""

    def __len__(self) -> int: ...
    def batch(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Unigram:
    """How well the frequencies predict a set of examples."""

    nll: float
    """Negative log-likelihood in nats, summed over the predictions."""
    hits: int
    """Predictions that are the most frequent token."""
    predictions: int


def measure_unigram(train: Examples, measured: Examples) -> Unigram:
    """The targets of `measured` under the frequencies of those of `train`.

    Each token is counted once more than it occurs, so that none is impossible; of a long training
    text, rows at even distances are counted.
    """
    wanted = np.concatenate(list(_targets(measured, np.arange(len(measured)))))
    width = max(1, train.batch(np.zeros(1, np.int64))["targets"].numel())
    every = max(1, len(train) * width // MOST_TOKENS)
    seen = np.concatenate(list(_targets(train, np.arange(0, len(train), every))))
    size = 1 + int(max(seen.max(initial=0), wanted.max(initial=0)))
    frequency = np.bincount(seen, minlength=size) + 1.0
    surprise = -np.log(frequency / frequency.sum())
    hits = int((wanted == frequency.argmax()).sum())
    return Unigram(float(surprise[wanted].sum()), hits, len(wanted))


def unigram_figures(
    figures_of: Callable[[Any, int], dict[str, float]], train: Examples, measured: Examples
) -> dict[str, float]:
    """What `figures_of` makes of the unigram model's sums: the figures that a model is given."""
    found = measure_unigram(train, measured)
    sums = {"loss": np.asarray(found.nll), "hits": np.asarray(found.hits)}
    return figures_of(sums, found.predictions)


def _targets(examples: Examples, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        targets = examples.batch(rows[first : first + _ROWS_AT_ONCE])["targets"].numpy()
        yield targets[targets != UNSCORED]
