"""Which examples of unequal length form step n: batches of like length, drawn by pure functions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmkit.data.order import permutation

WINDOW = 64
"""Most batches whose examples are sorted together: the more, the less padding, and the less
random are the batches."""


def rows_of_step(
    step: int,
    *,
    global_batch_size: int,
    lengths: NDArray[np.integer],
    seed: int,
    limit: int | None = None,
) -> NDArray[np.int64]:
    """The rows that step number `step` (from 0) trains on, the shortest first.

    Each epoch puts the examples in an order of its own and cuts it into windows; in a window
    the examples are sorted by length and cut into batches, and the batches are shuffled. So each
    epoch sees every example once, whatever the batch size: a batch that an epoch's end parts holds
    the last of the one epoch and the first of the next. Slots at or past `limit`, the examples of
    the whole run, are left out. Takes time and memory for one window.
    """
    n = len(lengths)
    first = step * global_batch_size
    last = first + global_batch_size if limit is None else min(first + global_batch_size, limit)
    parts = []
    while first < last:
        epoch, position = divmod(first, n)
        stop = min(n, position + last - first)
        end = min(n, (step + 1) * global_batch_size - epoch * n)
        rows = _batch(epoch, position, end, global_batch_size, lengths, seed)
        parts.append(rows[: stop - position])
        first += stop - position
    rows = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    return rows[np.argsort(lengths[rows], kind="stable")]


def _batch(
    epoch: int, start: int, end: int, size: int, lengths: NDArray[np.integer], seed: int
) -> NDArray[np.int64]:
    """The rows of one epoch that stand at places start to end, which are one batch of `size`, or
    the part of one that lies in the epoch."""
    order = permutation(len(lengths), (seed, epoch))
    head = -epoch * len(lengths) % size  # of the batch that the epoch before began
    whole = (len(lengths) - head) // size  # batches that lie in the epoch
    number, rest = divmod(start - head, size)
    if end - start < size or rest or number >= whole:
        return order(np.arange(start, end, dtype=np.int64))
    window_size = -(-whole // -(-whole // WINDOW))  # windows of like size, at most WINDOW
    window = number // window_size
    before, count = window * window_size, min(window_size, whole - window * window_size)
    places = head + before * size + np.arange(count * size, dtype=np.int64)
    rows = order(places)
    rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(count, size)
    shuffled = permutation(count, (seed, epoch, window))(np.array([number - before]))
    chosen: NDArray[np.int64] = rows[shuffled[0]]
    return chosen
