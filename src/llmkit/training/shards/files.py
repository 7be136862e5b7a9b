"""Named tensors as safetensors files, written by all processes together, read by any number.

The division into files follows from names and sizes alone, so that the bytes are the same for any
number of processes. Each file has one owner, which receives one whole tensor at a time, checks that
it is finite, writes it and forgets it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmkit.distributed.processes import Processes
from llmkit.errors import Diverged
from llmkit.storage import atomic
from llmkit.storage.atomic import FileFacts
from llmkit.storage.tensor_files import (
    Outline,
    TensorFile,
    in_usual_order,
    index_name,
    outlined,
    shard_names,
    write_index,
)
from llmkit.training.shards import parts

FILE_BYTES = 5_000_000_000
"""Maximum bytes of a file, unless one tensor is larger."""


class TensorGroup(NamedTuple):
    """Tensors that are made together and stand in one file."""

    outlines: Mapping[str, Outline]
    make: Callable[[int | None], Mapping[str, Tensor] | None]
    """Makes them in CPU memory on the rank given; None on the others. All ranks must call it."""

    @property
    def n_bytes(self) -> int:
        """Size of their values."""
        return sum(outline.n_bytes for outline in self.outlines.values())


def groups_of(tensors: Mapping[str, Tensor]) -> list[TensorGroup]:
    """One group for each tensor, in the order of the safetensors library."""

    def group(name: str, outline: Outline) -> TensorGroup:
        def make(owner: int | None) -> dict[str, Tensor] | None:
            whole = parts.whole_on(tensors[name], owner)
            return None if whole is None else {name: whole}

        return TensorGroup({name: outline}, make)

    ordered = in_usual_order({name: outlined(tensor) for name, tensor in tensors.items()})
    return [group(name, outline) for name, outline in ordered.items()]


def division(groups: Sequence[TensorGroup], largest: int) -> list[list[TensorGroup]]:
    """The groups of each file, in order."""
    files: list[list[TensorGroup]] = [[]]
    size = 0
    for group in groups:
        if files[-1] and size + group.n_bytes > largest:
            files.append([])
            size = 0
        files[-1].append(group)
        size += group.n_bytes
    return files


class TensorSet(NamedTuple):
    """Pieces that are saved under one stem, such as `model`."""

    stem: str
    what: str
    """What a tensor of the set is called, such as `the weight`."""
    groups: Sequence[TensorGroup]
    first_owner: int = 0
    """The rank that owns the first file, modulo the number of processes."""
    facts: Mapping[str, int] = {}
    """More metadata for the index of several files."""


def write_tensors(
    directory: Path, tensors: TensorSet, processes: Processes | None, largest: int = FILE_BYTES
) -> dict[str, FileFacts]:
    """Writes a set of tensors, and returns the facts of the files that this process owns.

    All processes must call it. Raises Diverged for a non-finite tensor, and OSError; the other
    processes are then not stopped: see `Processes.alike`.
    """
    rank, count = (0, 1) if processes is None else (processes.rank, processes.count)
    files = division(tensors.groups, largest)
    names = shard_names(tensors.stem, len(files))
    own: dict[str, FileFacts] = {}
    fault: Exception | None = None
    for first in range(0, len(files), count):  # one file of each process at a time
        numbers = range(first, min(first + count, len(files)))
        owners = {number: (tensors.first_owner + number) % count for number in numbers}
        mine = next((number for number in numbers if owners[number] == rank), None)
        shard = None if mine is None else _Shard(directory / names[mine], files[mine])
        for row in zip_longest(*(files[number] for number in numbers)):
            for number, group in zip(numbers, row, strict=True):
                made = None if group is None else group.make(owners[number])
                if made is not None and group is not None and shard is not None:
                    shard.write({name: made[name] for name in group.outlines}, tensors.what)
        if mine is not None and shard is not None:
            fault = fault or shard.fault
            own |= {} if shard.facts is None else {names[mine]: shard.facts}
    if fault is not None:
        raise fault
    if len(files) > 1 and rank == 0:
        held = dict(
            zip(names, ([n for p in file for n in p.outlines] for file in files), strict=True)
        )
        size = sum(group.n_bytes for group in tensors.groups)
        write_index(directory, tensors.stem, held, total_size=size, **tensors.facts)
    return own


def check_savable(name: str, tensor: Tensor, what: str, directory: Path) -> None:
    """Raises Diverged for a tensor with a non-finite value; `what` says what it is."""
    if not torch.isfinite(tensor).all():
        raise Diverged(
            f"{what} {name} is not finite; it was not saved",
            where=str(directory),
            kept="all earlier checkpoints",
            next="lower train.learning_rate in a new run, and check the data",
        )


class _Shard:
    """A file whose first error is kept rather than raised: its owner must still receive the tensors
    that the other processes send."""

    def __init__(self, path: Path, groups: Sequence[TensorGroup]) -> None:
        self.fault: Exception | None = None
        self.facts: FileFacts | None = None
        self._left = len(groups)
        self._path = path
        self._outlines = {k: v for group in groups for k, v in group.outlines.items()}
        self._file: TensorFile | None = None

    def write(self, tensors: Mapping[str, Tensor], what: str) -> None:
        """Appends the tensors of a group, and flushes the file after the last one."""
        self._left -= 1
        try:
            if self.fault is None:
                self._append(tensors, what)
        except (OSError, Diverged) as error:
            self.fault = error
        if self.fault is not None and self._file is not None:
            self._file.close()

    def _append(self, tensors: Mapping[str, Tensor], what: str) -> None:
        if self._file is None:
            self._file = TensorFile(self._path, self._outlines)
        for name, tensor in tensors.items():
            check_savable(name, tensor, what, self._path.parent)
            self._file.append(tensor)
        if not self._left:
            self.facts = self._file.finish()


class StoredTensors:
    """The tensors of a set of files, read by name, whole or in part."""

    def __init__(self, directory: Path, stem: str) -> None:
        """Opens the files, also a single one of an earlier llmkit; raises OSError or ValueError if
        they do not hold what they should."""
        index = directory / index_name(stem)
        try:
            indexed = self._indexed(index) if index.exists() else None
            names = shard_names(stem, 1) if indexed is None else sorted(set(indexed.values()))
            files: dict[str, Any] = {
                name: safe_open(directory / name, framework="pt") for name in names
            }
            self._files = {key: file for file in files.values() for key in file.keys()}  # noqa: SIM118
            held = {key: name for name, file in files.items() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{stem}: {error}") from error
        if indexed not in (None, held):
            raise ValueError(f"{index.name} does not match its files")

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor, distributed like another of its shape: reads only the rows of this process."""
        if not self.shape(name):
            return self[name].to(tensor.device)
        return parts.part_of(lambda rows: self._files[name].get_slice(name)[rows], tensor)

    @staticmethod
    def _indexed(index: Path) -> dict[str, str]:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        for file in places.values():
            if not atomic.is_safe(file) or "/" in file:
                raise ValueError(f"{index.name} names a file outside its directory: {file!r}")
        return dict(places)
