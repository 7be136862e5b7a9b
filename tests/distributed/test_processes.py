"""How processes share work."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

from llmkit.distributed.processes import Processes


class Connection:
    """What accelerate offers to one of several processes, here threads."""

    device = "cpu"

    def __init__(self, rank: int, rows: list[Tensor | None], barrier: Barrier) -> None:
        self.process_index, self.num_processes = rank, len(rows)
        self.rows, self.barrier = rows, barrier

    def exchanged(self, mine: Tensor) -> list[Tensor]:
        self.rows[self.process_index] = mine
        self.barrier.wait(60)
        found = [row for row in self.rows if row is not None]
        self.barrier.wait(60)
        return found

    def gather(self, mine: Tensor) -> Tensor:
        return torch.cat(self.exchanged(mine))

    def reduce(self, mine: Tensor, how: str) -> Tensor:
        assert how == "sum"
        return torch.stack(self.exchanged(mine)).sum(0)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_each_item_is_worked_on_once_and_all_get_all_results_in_order(count: int, n: int) -> None:
    rows, barrier = [None] * count, Barrier(count)
    items = [f"\N{SNOWMAN}{k}" for k in range(n)]

    def work(rank: int) -> tuple[list[str], list[Any]]:
        connection: Any = Connection(rank, rows, barrier)
        processes = Processes(connection, "fp32")
        mine = list(processes.share(items))
        return mine, processes.joined([{"text": item} for item in mine])

    with ThreadPoolExecutor(count) as threads:
        shares, joined = zip(*threads.map(work, range(count)), strict=True)
    assert sorted(item for share in shares for item in share) == sorted(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(each == [{"text": item} for item in items] for each in joined)
