"""Failures of a single rank in a step: bad data, out of memory, a compiler error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llmkit.distributed.processes import Processes
from llmkit.errors import ConfigError, DataError, LlmkitError, ResourceError


@contextmanager
def named_by_rank(processes: Processes, micro_batch_size: int) -> Iterator[None]:
    """Attaches the rank to a failure, so that this rank reports it: the other ranks only notice
    that the process has ended.

    Raises ResourceError when memory runs out, with the micro-batch size to try, and ConfigError
    when the model cannot be compiled.
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
            f"cannot compile the model: {str(error).splitlines()[0][:200]}",
            where="train.compile",
            kept="all checkpoints",
            next="write train.compile=false, or install a C++ compiler if it is missing",
        )
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that memory has run out."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "allocate memory" in str(error)


def too_large(size: int) -> ResourceError:
    """The error for a micro-batch that does not fit into memory."""
    advice = (
        f"write train.micro_batch_size={max(1, size // 2)}; results stay the same"
        if size > 1
        else "use a smaller model, a shorter data.block_size, or train.gradient_checkpointing=true"
    )
    return ResourceError(
        f"out of memory with a micro-batch of {size} sequences",
        where="train.micro_batch_size",
        kept="all checkpoints",
        next=advice,
    )
