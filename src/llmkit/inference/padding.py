"""The lengths that rows are padded to, and the batches that they are computed in.

In fp32 all batches of a length have the same shape, because the last bits of a matrix product
depend on it: so the result of a row does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

STEPS_PER_OCTAVE = 16
"""Padded lengths per power of two."""

_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Tokens per batch: enough to keep the device busy."""


def batch_tokens(device: torch.device) -> int:
    """Number of tokens of a batch that keeps a device busy."""
    return _BATCH_TOKENS.get(device.type, 1024)


def padded_lengths(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The lengths that texts are padded to: rounded up by at most 1/16, so that few differ."""
    octaves = np.floor(np.log2(np.maximum(1, lengths))).astype(np.int64)
    step = np.maximum(1, 2**octaves // STEPS_PER_OCTAVE)
    return np.maximum(1, -(-lengths // step) * step)


def padded_batches(
    lengths: NDArray[np.int64], device: torch.device, precision: str
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """The rows of each batch and their padded length; in fp32, row -1 fills up a batch."""
    padded = padded_lengths(lengths)
    for length in np.unique(padded).tolist():
        rows, size = np.flatnonzero(padded == length), max(1, batch_tokens(device) // length)
        for first in range(0, len(rows), size):
            batch = rows[first : first + size]
            if precision == "fp32":
                batch = np.pad(batch, (0, size - len(batch)), constant_values=-1)
            yield batch, length


def padded_to(
    batch: Mapping[str, torch.Tensor], length: int, fills: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """The tensors [rows, any length] padded on the right to a length: with the value in `fills`, or
    0."""
    return {
        name: functional.pad(value, (0, length - value.shape[1]), value=fills.get(name, 0))
        for name, value in batch.items()
    }
