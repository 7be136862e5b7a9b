"""What one process of a run may meet alone in a step: bad data, or memory that runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmkit.errors import DataError
from llmkit.training import probe
from llmkit.training.runtime import Processes


@contextmanager
def named(processes: Processes, micro_batch_size: int) -> Iterator[None]:
    """Gives such a fault the number of the process, which then tells it itself: the others only
    see that it is gone.

    Raises ResourceError where memory runs out, with the micro-batch to try.
    """
    rank = processes.rank if processes.count > 1 else None
    try:
        yield
    except DataError as fault:
        fault.rank = rank
        raise
    except (RuntimeError, MemoryError) as error:
        if not probe.out_of_memory(error):
            raise
        too_large = probe.too_large(micro_batch_size)
        too_large.rank = rank
        raise too_large from error
