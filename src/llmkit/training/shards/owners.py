"""Compute on whole matrices of which each process holds some rows, each matrix by one process."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from llmkit.training.shards.parts import own_rows


def by_owners(rows: Tensor, like: DTensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies `compute` to matrices [n, rows, columns] of equal shape, and returns the own rows of
    the result.

    `rows` [n, own rows, columns] are those of this process; each matrix is divided like `like`.
    Matrix i is computed by process i mod N: one exchange brings it its rows, a second one takes
    the result back, where gathering would let every process repeat all the work.
    """
    mesh, dim = like.device_mesh, like.device_mesh.ndim - 1
    group, count, place = mesh.get_group(dim), mesh.size(dim), mesh.get_local_rank(dim)
    columns = rows.shape[2]
    parts = [own_rows(like.shape[0], each, count) for each in range(count)]
    heights = [part.stop - part.start for part in parts]
    numbers = [len(range(owner, len(rows), count)) for owner in range(count)]
    given = [number * heights[place] * columns for number in numbers]
    taken = [numbers[place] * height * columns for height in heights]

    received = rows.new_empty(sum(taken))
    sent = torch.cat([rows[owner::count].reshape(-1) for owner in range(count)])
    dist.all_to_all_single(received, sent, taken, given, group=group)
    blocks = zip(torch.split(received, taken), heights, strict=True)
    whole = torch.cat([block.view(numbers[place], height, columns) for block, height in blocks], 1)
    found = compute(whole).to(rows.dtype) if len(whole) else whole

    sent = torch.cat([found[:, part].reshape(-1) for part in parts])
    received = rows.new_empty(sum(given))
    dist.all_to_all_single(received, sent, given, taken, group=group)
    result = torch.empty_like(rows)
    for owner, block in enumerate(torch.split(received, given)):
        result[owner::count] = block.view(numbers[owner], heights[place], columns)
    return result
