"""Bootstrap confidence intervals: how much a metric would vary on other data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
MAX_UNITS = 10_000
"""More segments than this are merged with their neighbours before resampling."""

_AT_ONCE = 50


def resample(sums: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """The totals [RESAMPLES, figures] of segments [segments, figures] drawn with replacement.

    The draws depend only on the seed and the number of segments: the totals of two models on the
    same segments are paired (Efron & Tibshirani 1993, chapter 8).
    """
    if len(sums) > MAX_UNITS:
        sums = np.add.reduceat(sums, np.arange(MAX_UNITS) * len(sums) // MAX_UNITS)
    n = len(sums)
    generator = np.random.default_rng(seed)
    even = np.full(n, 1 / n)
    drawn = [
        generator.multinomial(n, even, size=_AT_ONCE) @ sums for _ in range(RESAMPLES // _AT_ONCE)
    ]
    return np.concatenate(drawn)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The central 95% interval of resampled values."""
    low, high = np.quantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()
    return low, high


def figure_intervals(
    figures: Callable[[NDArray[Any]], Mapping[str, float]], n_rows: int, seed: int
) -> dict[str, tuple[float, float]]:
    """The percentile intervals (Efron 1979) of metrics that are not sums over rows.

    `figures` computes them from the indices of the resampled rows.
    """
    generator = np.random.default_rng(seed)
    drawn = [figures(generator.integers(n_rows, size=n_rows)) for _ in range(RESAMPLES)]
    return {name: interval(np.array([each[name] for each in drawn])) for name in drawn[0]}
