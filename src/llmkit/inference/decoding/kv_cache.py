"""The KV cache of a running batch: sequences join, leave and grow without a copy at each token.

All rows end in the same, newest column; columns before a row's first token are padding. The cache
of transformers grows by concatenation and is copied at every token; this one allocates columns
ahead.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

ROOM = 64
"""Columns that are allocated ahead."""
_FREE = 1 << 60
"""Start of a row without a sequence, beyond all columns."""
ADDED = -1
"""Marks a new row among the rows to keep."""


class KVLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers comes without types
    """Keys and values of one layer: [rows, heads, room, head size], filled up to `length`."""

    is_sliding = False  # a sliding window is in the mask; its old columns are kept

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the buffers with the shape and type of the first tokens."""
        self.keys, self.values = torch.zeros_like(key_states), torch.zeros_like(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Appends columns and returns all filled ones."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def rebuild(self, rows: Tensor, length: int, columns: int) -> None:
        """Keeps these rows with their newest `length` columns, padded on the left if there are
        fewer, in buffers of `columns`."""
        self.keys = _rebuilt(self.keys[:, :, : self.length], rows, length, columns)
        self.values = _rebuilt(self.values[:, :, : self.length], rows, length, columns)
        self.length = length

    def put(self, rows: Tensor, other: KVLayer, other_rows: Tensor, width: int) -> None:
        """Copies the newest `width` columns of another layer's rows to the end of rows here."""
        begin = self.length - width
        source = slice(other.length - width, other.length)
        self.keys[rows, :, begin : self.length] = other.keys[other_rows, :, source]
        self.values[rows, :, begin : self.length] = other.values[other_rows, :, source]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of columns that the next queries see, and the index of the first."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """The number of filled columns."""
        return self.length

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1


class KVCache(Cache):  # type: ignore[misc]  # transformers comes without types
    """The layers of a model, all filled to the same column, and the start column of each row."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=KVLayer)
        self.starts = torch.zeros(0, dtype=torch.long)
        """Column of each row's first token; beyond all columns for a row without a sequence."""
        self.memory: Tensor | None = None
        """[rows, ...], what the model remembers of each row besides keys and values, if anything:
        an ensemble, how well each expert has predicted it."""

    @property
    def length(self) -> int:
        """The number of filled columns."""
        return self.layers[0].length if self.layers else 0

    @property
    def n_bytes_per_token(self) -> int:
        """Bytes of one column of one row over all layers."""
        tensors = [each for layer in self.layers for each in (layer.keys, layer.values)]
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in tensors)

    def begins(self) -> Tensor:
        """The first column that each row sees; for a free row, the next column."""
        return self.starts.clamp(max=self.length)

    def make_room(self, columns: int) -> None:
        """Makes room for so many more columns, at most ROOM; drops padding that all rows share."""
        if self.layers[0].keys.shape[2] < self.length + columns:
            self.keep(torch.arange(len(self.starts)))

    def buffers(self) -> tuple[list[Tensor], list[Tensor]]:
        """The keys and values of each layer, [rows, heads, room, head size]."""
        return [each.keys for each in self.layers], [each.values for each in self.layers]

    def extend(self, columns: int) -> None:
        """Counts new columns, for which there is room, as filled."""
        for layer in self.layers:
            layer.length += columns

    def release(self, row: int) -> None:
        """Frees a row."""
        self.starts[row] = _FREE

    def keep(self, rows: Tensor) -> None:
        """Keeps only these rows, in this order."""
        self._rebuild(rows, self.length - int(self.begins()[rows].min()))

    def shorten(self, columns: int) -> None:
        """Drops the newest columns."""
        for layer in self.layers:
            layer.length -= columns

    def copy_of(self, rows: Tensor) -> KVCache:
        """A new cache with copies of these rows."""
        made = KVCache()
        made.starts = self.starts
        for layer in self.layers:
            twin = KVLayer()
            twin.keys, twin.values, twin.length = layer.keys, layer.values, layer.length
            twin.is_initialized = True
            made.layers.append(twin)
        made.memory = self.memory
        made.keep(rows)
        return made

    def put(self, rows: Tensor, other: KVCache, other_rows: Tensor) -> None:
        """Copies rows of another cache into rows of this one, which grows if rows are missing or
        the new ones are longer than all present rows."""
        widths = other.length - other.starts[other_rows]
        length = max(self.length, int(widths.max()))
        missing = max(0, int(rows.max()) + 1 - len(self.starts))
        if missing or length > self.length:
            known = torch.arange(len(self.starts))
            self._rebuild(torch.cat([known, torch.full((missing,), ADDED)]), length)
        for mine, source in zip(self.layers, other.layers, strict=True):
            mine.put(rows, source, other_rows, int(widths.max()))
        if self.memory is not None and other.memory is not None:
            self.memory[rows] = other.memory[other_rows]
        self.starts[rows] = self.length - widths

    def _rebuild(self, rows: Tensor, length: int) -> None:
        moved = self.starts[rows] + (length - self.length)
        self.starts = torch.where(rows == ADDED, _FREE, moved)
        for layer in self.layers:
            layer.rebuild(rows.to(layer.keys.device), length, length + ROOM)
        if self.memory is not None:
            old = rows != ADDED
            memory = self.memory.new_zeros(len(rows), *self.memory.shape[1:])
            memory[old] = self.memory[rows[old]]
            self.memory = memory


def _rebuilt(states: Tensor, rows: Tensor, length: int, columns: int) -> Tensor:
    heads, filled, size = states.shape[1:]
    kept = min(filled, length)
    # Zeros rather than uninitialized memory: masked columns must be finite, too.
    made = states.new_zeros(len(rows), heads, columns, size)
    old = rows != ADDED
    made[old, :, length - kept : length] = states[:, :, filled - kept :][rows[old]]
    return made
