"""Write safetensors files one tensor at a time, hashed while they are written.

The format is described at https://github.com/huggingface/safetensors#format: the size of a JSON
header, the header, and the tensors without gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""The names of data types in safetensors."""


class Outline(NamedTuple):
    """The data type and shape of a stored tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Size of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def outlined(tensor: Tensor) -> Outline:
    """The outline of a tensor, whole even if this process holds only a part of it."""
    return Outline(tensor.dtype, tuple(tensor.shape))


def header(tensors: Mapping[str, Outline]) -> tuple[bytes, dict[str, int]]:
    """The beginning of a file with these tensors in this order, and where each tensor begins."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for name, outline in tensors.items():
        begins[name], end = end, end + outline.n_bytes
        described[name] = {
            "dtype": _NAMES[outline.dtype],
            "shape": list(outline.shape),
            "data_offsets": [begins[name], end],
        }
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return (
        len(text).to_bytes(8, "little") + text,
        {name: 8 + len(text) + begin for name, begin in begins.items()},
    )


def in_usual_order(tensors: Mapping[str, Outline]) -> dict[str, Outline]:
    """The tensors in the order of the safetensors library: wide data types first, then by name."""
    return dict(sorted(tensors.items(), key=lambda each: (-each[1].dtype.itemsize, each[0])))


def bytes_of(tensor: Tensor) -> memoryview:
    """The values of a tensor in CPU memory, as they are stored."""
    values: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(values)


def shard_names(stem: str, count: int) -> list[str]:
    """The names of a set of files: `model.safetensors`, or `model-00001-of-00002.safetensors`."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def index_name(stem: str) -> str:
    """The name of the index of several files."""
    return f"{stem}.safetensors.index.json"


class TensorFile:
    """A file that is written from its first byte to its last, and hashed meanwhile."""

    def __init__(self, path: Path, tensors: Mapping[str, Outline]) -> None:
        """Creates the file; `tensors` must be appended in this order."""
        self._hash = hashlib.sha256()
        self._size = 0
        self._file = path.open("xb")
        self._append(header(tensors)[0])

    def append(self, tensor: Tensor) -> None:
        """Writes the next tensor, which must be in CPU memory."""
        self._append(bytes_of(tensor))

    def finish(self) -> dict[str, Any]:
        """Flushes the file to disk and closes it; returns its `sha256` and `size`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"sha256": self._hash.hexdigest(), "size": self._size}

    def close(self) -> None:
        """Closes an unfinished file."""
        self._file.close()

    def _append(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self._hash.update(content)
        self._size += len(content)


def write_index(
    directory: Path, stem: str, files: Mapping[str, Sequence[str]], **facts: int
) -> None:
    """Writes the index of several files: which file holds which tensor."""
    places = {name: file for file, names in files.items() for name in names}
    index = {"metadata": facts, "weight_map": places}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (directory / index_name(stem)).write_text(text, encoding="utf-8")
