"""Failures that one rank may meet in a step: bad data, too little memory, a compiler that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llmkit.distributed.processes import Processes
from llmkit.errors import ConfigError, DataError, LlmkitError, ResourceError


@contextmanager
def named_by_rank(processes: Processes, micro_batch_size: int) -> Iterator[None]:
    """Gives such a failure its rank, which then reports it itself: the other ranks only see that
    the process is gone.

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
    if out_of_memory(error):
        return too_large(micro_batch_size)
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return ConfigError(
            f"the model cannot be compiled here: {str(error).splitlines()[0][:200]}",
            where="train.compile",
            kept="all checkpoints",
            next="write train.compile=false, or install a C++ compiler if that is what is missing",
        )
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "allocate memory" in str(error)


def too_large(size: int) -> ResourceError:
    """The fault of a micro-batch that does not fit."""
    advice = (
        f"write train.micro_batch_size={max(1, size // 2)}; results stay the same"
        if size > 1
        else "use a smaller model, a shorter data.block_size, or train.gradient_checkpointing=true"
    )
    return ResourceError(
        f"out of memory with {size} sequences at once",
        where="train.micro_batch_size",
        kept="all checkpoints",
        next=advice,
    )
