"""Prepare the input of the next step in a thread while a step is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmkit.distributed.processes import Processes
from llmkit.training.tasks.task import Batch, Examples, Loss, Rows


@dataclass(frozen=True)
class Input:
    """The input of one process in one step."""

    rows: Rows
    """Number of predictions over all processes."""
    predictions: int
    weights: tuple[float, ...]
    """The divisor of each part of the objective summed over all rows."""
    slots: list[NDArray[np.int64]]
    """For each micro-batch, the indices of its examples in the step, over all processes."""
    micro_batches: list[Batch]


@contextmanager
def ahead(
    loss: Loss,
    examples: Examples,
    rows_of_step: Callable[[int], Rows],
    micro_batch_size: int,
    processes: Processes,
) -> Iterator[Callable[[int], Input]]:
    """Yields a function that returns the input of a step and starts preparing the next one.

    The rows of a step are a pure function of its number, so preparing an unused step has no effect.
    """
    pinned = processes.device.type == "cuda"  # copies from pinned memory are asynchronous

    def prepared(step: int) -> Input:
        rows = rows_of_step(step)
        slots = share_of_rows(len(rows), micro_batch_size, processes.rank, processes.count)
        chosen = np.append(rows, -1)  # slot -1 means row -1
        batches = [examples.batch(chosen[part]) for part in slots]
        if pinned:
            batches = [{name: x.pin_memory() for name, x in batch.items()} for batch in batches]
        weights = loss.weights(examples, rows)
        return Input(rows, examples.count(rows), weights, slots, batches)

    waiting: dict[int, Future[Input]] = {}
    with ThreadPoolExecutor(1, thread_name_prefix="input") as thread:

        def take(step: int) -> Input:
            found = waiting.pop(step, None) or thread.submit(prepared, step)
            waiting[step + 1] = thread.submit(prepared, step + 1)
            return found.result()

        yield take


def share_of_rows(n_rows: int, size: int, rank: int, processes: int) -> list[NDArray[np.int64]]:
    """This process's part of the slots 0 to `n_rows` - 1, in micro-batches of at most `size`;
    number and size of the micro-batches are the same on every process.

    The part is contiguous and filled up with slot -1, an example without predictions, so that no
    process waits for a micro-batch that another does not have.
    """
    part = max(1, math.ceil(n_rows / processes))
    size = min(size, part)
    slots = np.full((processes, math.ceil(part / size) * size), -1, dtype=np.int64)
    for process in range(processes):
        own = range(n_rows)[process * part : (process + 1) * part]
        slots[process, : len(own)] = own
    return list(slots[rank].reshape(-1, size))
