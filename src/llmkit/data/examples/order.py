"""The examples of step n, a pure function of seed and step: resuming needs no saved state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_WINDOW = 64
"""Maximum number of batches whose examples are sorted together: a larger window means less padding
and less random batches."""

_ROUNDS = 6
_KEPT = 1 << 18
"""Maximum number of examples for which the order of a whole epoch is cached, which is faster."""


@dataclass(frozen=True)
class Permutation:
    """A keyed permutation of 0..n-1 that needs no memory and can be evaluated at any index.

    A Feistel network (Luby and Rackoff, 1988) over the next power of four, walked along its cycle
    until the value is below n (Black and Rogaway, 2002).
    """

    n: int
    half_bits: int
    keys: tuple[int, ...]

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The permuted indices; all are in 0..n-1."""
        values = self._network(np.asarray(indices).astype(np.uint64))
        while (outside := values >= self.n).any():
            values[outside] = self._network(values[outside])
        return values.astype(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        shift = np.uint64(self.half_bits)
        mask = np.uint64((1 << self.half_bits) - 1)
        left, right = values >> shift, values & mask
        for key in self.keys:
            left, right = right, left ^ (scramble(right ^ np.uint64(key)) & mask)
        return (left << shift) | right


def permutation(n: int, key: tuple[int, ...]) -> Permutation:
    """The permutation of 0..n-1 for a key, the same on every machine and version."""
    if n < 1:
        raise ValueError(f"a permutation needs at least one element, not {n}")
    digest = blake2b("/".join(map(str, key)).encode(), digest_size=8 * _ROUNDS).digest()
    keys = tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))
    return Permutation(n, max(1, ((n - 1).bit_length() + 1) // 2), keys)


def rows_of_step(
    step: int, n_examples: int, global_batch_size: int, seed: int, limit: int | None = None
) -> NDArray[np.int64]:
    """The rows of step number `step` (from 0), in order.

    Slot s of the run holds row permutation(seed, s // n)(s % n), so each epoch has every example
    once, for any batch size. Slots at or past `limit`, the number of examples of the whole run,
    are skipped.
    """
    slots = slots_of_step(step, global_batch_size, limit)
    return rows_of_slots(slots, n_examples, (seed,))


def occurrences_of_step(
    step: int, n_examples: int, global_batch_size: int, seed: int, limit: int | None = None
) -> NDArray[np.int64]:
    """The same rows, plus `n_examples` for every earlier epoch: no row number repeats in a run."""
    slots = slots_of_step(step, global_batch_size, limit)
    return slots // n_examples * n_examples + rows_of_slots(slots, n_examples, (seed,))


def slots_of_step(step: int, global_batch_size: int, limit: int | None = None) -> NDArray[np.int64]:
    """The slots of a step: a slot numbers the examples of a run from 0 in the order of use."""
    first = step * global_batch_size
    last = first + global_batch_size if limit is None else min(first + global_batch_size, limit)
    return np.arange(first, last, dtype=np.int64)


def rows_of_slots(
    slots: NDArray[np.int64], n_examples: int, key: tuple[int, ...]
) -> NDArray[np.int64]:
    """The rows at these slots; each epoch has a different order, which depends on the key."""
    epochs, positions = np.divmod(slots, n_examples)
    rows = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        if n_examples <= _KEPT:
            rows[here] = _whole(n_examples, (*key, epoch))[positions[here]]
        else:
            rows[here] = permutation(n_examples, (*key, epoch))(positions[here])
    return rows


@lru_cache(maxsize=16)
def _whole(n: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    return permutation(n, key)(np.arange(n, dtype=np.int64))


def scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of MurmurHash3: every input bit flips each output bit half of the time."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))


def rows_by_length(
    step: int,
    *,
    global_batch_size: int,
    lengths: NDArray[np.integer],
    seed: int,
    limit: int | None = None,
) -> NDArray[np.int64]:
    """The rows of step number `step` (from 0), sorted by increasing length.

    Each epoch shuffles the examples and divides them into windows; within a window the examples are
    sorted by length and divided into batches, and the batches are shuffled. So each epoch has every
    example once, for any batch size: a batch that spans two epochs holds the last examples of one
    and the first of the next. Slots at or past `limit`, the number of examples of the whole run,
    are skipped. Takes time and memory for one window.
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
    """The rows of one epoch at positions start to end: one batch of `size`, or the part of a batch
    that lies in the epoch."""
    order = permutation(len(lengths), (seed, epoch))
    head = -epoch * len(lengths) % size  # rest of the batch that the previous epoch began
    whole = (len(lengths) - head) // size  # whole batches in the epoch
    number, rest = divmod(start - head, size)
    if end - start < size or rest or number >= whole:
        return order(np.arange(start, end, dtype=np.int64))
    window_size = -(-whole // -(-whole // _WINDOW))  # windows of similar size, at most _WINDOW
    window = number // window_size
    before, count = window * window_size, min(window_size, whole - window * window_size)
    places = head + before * size + np.arange(count * size, dtype=np.int64)
    rows = order(places)
    rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(count, size)
    shuffled = permutation(count, (seed, epoch, window))(np.array([number - before]))
    chosen: NDArray[np.int64] = rows[shuffled[0]]
    return chosen
