"""Which examples form step n: a pure function of seed and step, so nothing is saved to go on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_WINDOW = 64
"""Most batches whose examples are sorted together: the more, the less padding, and the less
random are the batches."""

_ROUNDS = 6
_KEPT = 1 << 18
"""Examples up to which the whole order of an epoch is kept: a part of it takes longer to ask."""


@dataclass(frozen=True)
class Permutation:
    """A keyed permutation of 0..n-1 that takes no memory and can be asked anywhere.

    A Feistel network (Luby and Rackoff, 1988) over the next power of four, walked along its cycle
    until it comes back below n (Black and Rogaway, 2002).
    """

    n: int
    half_bits: int
    keys: tuple[int, ...]

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places where the permutation puts the indices, each in 0..n-1."""
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
    """The permutation of 0..n-1 that belongs to the key, the same on every machine and version."""
    if n < 1:
        raise ValueError(f"a permutation needs at least one element, not {n}")
    digest = blake2b("/".join(map(str, key)).encode(), digest_size=8 * _ROUNDS).digest()
    keys = tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))
    return Permutation(n, max(1, ((n - 1).bit_length() + 1) // 2), keys)


def rows_of_step(
    step: int, n_examples: int, global_batch_size: int, seed: int, limit: int | None = None
) -> NDArray[np.int64]:
    """The rows that step number `step` (from 0) trains on, in order.

    Slot s of the run holds row permutation(seed, s // n)(s % n), so each epoch sees every example
    once, whatever the batch size. Slots at or past `limit`, the examples of the whole run, are left
    out.
    """
    slots = slots_of_step(step, global_batch_size, limit)
    return rows_of_slots(slots, n_examples, (seed,))


def occurrences_of_step(
    step: int, n_examples: int, global_batch_size: int, seed: int, limit: int | None = None
) -> NDArray[np.int64]:
    """The same rows, each plus `n_examples` for every epoch before: no two of a run are alike."""
    slots = slots_of_step(step, global_batch_size, limit)
    return slots // n_examples * n_examples + rows_of_slots(slots, n_examples, (seed,))


def slots_of_step(step: int, global_batch_size: int, limit: int | None = None) -> NDArray[np.int64]:
    """The slots of a step: the examples of a run are numbered from 0 in the order of their use."""
    first = step * global_batch_size
    last = first + global_batch_size if limit is None else min(first + global_batch_size, limit)
    return np.arange(first, last, dtype=np.int64)


def rows_of_slots(
    slots: NDArray[np.int64], n_examples: int, key: tuple[int, ...]
) -> NDArray[np.int64]:
    """The rows that stand at these slots, each epoch in an order of its own that hangs on the
    key."""
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
    window_size = -(-whole // -(-whole // _WINDOW))  # windows of like size, at most _WINDOW
    window = number // window_size
    before, count = window * window_size, min(window_size, whole - window * window_size)
    places = head + before * size + np.arange(count * size, dtype=np.int64)
    rows = order(places)
    rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(count, size)
    shuffled = permutation(count, (seed, epoch, window))(np.array([number - before]))
    chosen: NDArray[np.int64] = rows[shuffled[0]]
    return chosen
