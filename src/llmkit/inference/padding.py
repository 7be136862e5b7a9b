"""The lengths that rows of a batch are padded to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS_PER_OCTAVE = 16
"""Padded lengths per power of two."""


def padded_lengths(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The lengths that texts are padded to: rounded up by at most 1/16, so that few differ."""
    octaves = np.floor(np.log2(np.maximum(1, lengths))).astype(np.int64)
    step = np.maximum(1, 2**octaves // STEPS_PER_OCTAVE)
    return np.maximum(1, -(-lengths // step) * step)
