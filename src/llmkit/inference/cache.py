"""Keys and values of the texts that are being written, in slots that are filled and left.

Every row ends in the same column, the newest; what is left of a row's first token is padding.
A cache that grows by concatenation, as transformers' does, is copied whole at every token; this
one has room to the right.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

ROOM = 64
"""Columns that are allocated ahead."""
EMPTY = 1 << 60
"""Start of a slot without a text: beyond any column."""
ADDED = -1
"""Stands for a new slot among those to keep."""


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers comes without types
    """Keys and values of one layer: [slots, heads, room, head size], filled up to `length`."""

    is_sliding = False  # a sliding window is in the mask; its old columns are kept

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes the buffers at the first tokens, with their shape and type."""
        self.keys, self.values = torch.zeros_like(key_states), torch.zeros_like(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Adds columns and gives all that are filled."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def rebuild(self, slots: Tensor, drop: int, columns: int) -> None:
        """Keeps the columns from `drop` of these slots, in a buffer of so many columns."""
        self.keys = _rebuilt(self.keys[:, :, drop : self.length], slots, columns)
        self.values = _rebuilt(self.values[:, :, drop : self.length], slots, columns)
        self.length -= drop

    def put(self, slots: Tensor, other: SlotLayer, rows: Tensor, width: int) -> None:
        """Copies the last `width` columns of rows of another layer to the end of slots here."""
        begin = self.length - width
        theirs = slice(other.length - width, other.length)
        self.keys[slots, :, begin : self.length] = other.keys[rows, :, theirs]
        self.values[slots, :, begin : self.length] = other.values[rows, :, theirs]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that the next queries see, and the number of the first."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Columns that are filled."""
        return self.length

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class SlotCache(Cache):  # type: ignore[misc]  # transformers comes without types
    """The layers of a model, all filled alike, and where the row of each slot begins."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=SlotLayer)
        self.starts = torch.zeros(0, dtype=torch.long)
        """Column of each slot's first token; EMPTY for a slot without a text."""

    @property
    def length(self) -> int:
        """Columns that are filled."""
        return self.layers[0].length if self.layers else 0

    @property
    def n_bytes_per_token(self) -> int:
        """Memory of one column of one slot over all layers."""
        tensors = [each for layer in self.layers for each in (layer.keys, layer.values)]
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in tensors)

    def begins(self) -> Tensor:
        """The first column that each slot sees: in an empty one, the column that comes next."""
        return self.starts.clamp(max=self.length)

    def make_room(self) -> None:
        """Room for at least one more column; padding that all rows share is dropped."""
        if self.layers[0].keys.shape[2] == self.length:
            self.keep(torch.arange(len(self.starts)))

    def release(self, slot: int) -> None:
        """Empties a slot."""
        self.starts[slot] = EMPTY

    def keep(self, slots: Tensor) -> None:
        """Leaves only these slots, in this order."""
        self._rebuild(slots, drop=int(self.begins()[slots].min()))

    def shorten(self, columns: int) -> None:
        """Forgets the newest columns."""
        for layer in self.layers:
            layer.length -= columns

    def copy_of(self, rows: Tensor) -> SlotCache:
        """A cache that begins with copies of these rows."""
        made = SlotCache()
        made.starts = self.starts
        for layer in self.layers:
            twin = SlotLayer()
            twin.keys, twin.values, twin.length = layer.keys, layer.values, layer.length
            twin.is_initialized = True
            made.layers.append(twin)
        made.keep(rows)
        return made

    def put(self, slots: Tensor, other: SlotCache, rows: Tensor) -> None:
        """Copies rows of another cache, none longer than this one, into slots; slots that are not
        there yet are added."""
        widths = other.length - other.starts[rows]
        if missing := max(0, int(slots.max()) + 1 - len(self.starts)):
            known = torch.arange(len(self.starts))
            self._rebuild(torch.cat([known, torch.full((missing,), ADDED)]), drop=0)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.put(slots, theirs, rows, int(widths.max()))
        self.starts[slots] = self.length - widths

    def _rebuild(self, slots: Tensor, drop: int) -> None:
        starts = torch.where(slots == ADDED, EMPTY, self.starts[slots] - drop)
        columns = self.length - drop + ROOM
        for layer in self.layers:
            layer.rebuild(slots.to(layer.keys.device), drop, columns)
        self.starts = starts


def _rebuilt(states: Tensor, slots: Tensor, columns: int) -> Tensor:
    heads, filled, size = states.shape[1:]
    # Zeros, not whatever was in memory: a masked column must still be a number.
    made = states.new_zeros(len(slots), heads, columns, size)
    old = slots != ADDED
    made[old, :, :filled] = states[slots[old]]
    return made
