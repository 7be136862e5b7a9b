"""The part of a tensor that a process holds, and the whole tensor from its parts.

Sharded tensors are split by rows, as `torch.chunk` does: the last ranks may hold fewer, or none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def own_rows(length: int, place: int, count: int) -> slice:
    """The rows that the process at a place among `count` holds."""
    most = -(-length // count)
    return slice(min(length, place * most), min(length, (place + 1) * most))


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; shares its memory."""
    found: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return found


def whole_on(tensor: Tensor, owner: int | None) -> Tensor | None:
    """The whole tensor in CPU memory on the rank `owner`, None on the others; without an owner, on
    every rank. All ranks must call it."""
    if not isinstance(tensor, DTensor):
        return tensor.detach().cpu() if owner in (None, _rank()) else None
    if owner is None:
        return tensor.full_tensor().detach().cpu()
    return _gathered(tensor, owner)


def part_of(read: Callable[[slice], Tensor], like: Tensor) -> Tensor:
    """A stored tensor, distributed like another one; `read` reads some of its rows."""
    if not isinstance(like, DTensor):
        return read(slice(None)).to(like.device)
    mesh = like.device_mesh
    rows = own_rows(len(like), mesh.get_local_rank(mesh.ndim - 1), mesh.size(mesh.ndim - 1))
    return DTensor.from_local(
        read(rows).to(local(like).device),
        mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _gathered(tensor: DTensor, owner: int) -> Tensor | None:
    """The whole tensor on its owner, from the copy that the owner has a part of."""
    size = tensor.device_mesh.size(tensor.device_mesh.ndim - 1)
    copies = tensor.device_mesh.mesh.reshape(-1, size).tolist()
    holders = next(copy for copy in copies if owner in copy)
    if _rank() not in holders:
        return None
    mine = tensor.to_local().detach().contiguous()
    if _rank() != owner:
        if len(mine):
            dist.send(mine, owner)
        return None
    whole = torch.empty(tensor.shape, dtype=mine.dtype, device=mine.device)
    for place, holder in enumerate(holders):
        rows = own_rows(len(whole), place, size)
        if holder == owner:
            whole[rows] = mine
        elif rows.start < rows.stop:
            dist.recv(whole[rows], holder)
    return whole.cpu()
