"""What one process of a run may meet alone in a step: bad data, memory that runs out, or a compiler
that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmkit.errors import ConfigError, DataError, LlmkitError
from llmkit.training import probe
from llmkit.training.runtime import Processes


@contextmanager
def named(processes: Processes, micro_batch_size: int) -> Iterator[None]:
    """Gives such a fault the number of the process, which then tells it itself: the others only
    see that it is gone.

    Raises ResourceError where memory runs out, with the micro-batch to try, and ConfigError where
    the model cannot be compiled.
    """
    rank = processes.rank if processes.count > 1 else None
    try:
        yield
    except DataError as fault:
        fault.rank = rank
        raise
    except (RuntimeError, MemoryError) as error:
        explained = _explained(error, micro_batch_size)
        if explained is None:
            raise
        explained.rank = rank
        raise explained from error


def _explained(error: Exception, micro_batch_size: int) -> LlmkitError | None:
    if probe.out_of_memory(error):
        return probe.too_large(micro_batch_size)
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return ConfigError(
            f"the model cannot be compiled here: {str(error).splitlines()[0][:200]}",
            where="train.compile",
            kept="all checkpoints",
            next="write train.compile=false, or install a C++ compiler if that is what is missing",
        )
    return None
