"""The processes and devices of a run: accelerate is used to connect, place and reduce only."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmkit.distributed import device, network
from llmkit.distributed.launcher import CAPTURED, is_main_process, n_processes
from llmkit.errors import ConfigError, LlmkitError, ResourceError, UsageError, error_of

TIMEOUT = 600.0
"""Seconds that a process waits for the others by default. One limit serves all collectives: a small
one too may wait for a save, or for the samples that only rank 0 writes."""

_LAUNCH = "launch with `llmkit launch N -- COMMAND`, torchrun or srun"

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Processes:
    """This process, its device, and collectives over all processes of the run."""

    accelerator: Accelerator
    precision: str
    """`fp32` or `bf16`: arithmetic of the forward and backward pass."""
    one_model: bool = False
    """Whether one model is split across all processes. Each then does all of the work instead of a
    share of it, and `rank` and `count` are those of a single process."""

    @property
    def rank(self) -> int:
        """Rank of this process among those that share the work, from 0."""
        return 0 if self.one_model else int(self.accelerator.process_index)

    @property
    def count(self) -> int:
        """Number of processes that share the work."""
        return 1 if self.one_model else self.world_size

    @property
    def world_size(self) -> int:
        """Number of all processes."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process is rank 0, which writes the files."""
        return is_main_process()

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return torch.device(self.accelerator.device)

    def autocast(self) -> AbstractContextManager[None]:
        """Autocasts to bf16 if that is the run's precision; weights stay fp32.

        accelerate's autocast would copy every output to fp32, logits too.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def in_training(self) -> AbstractContextManager[None]:
        """The same for a training step, which does not need true fp32 on a GPU."""
        return device.in_training(self.precision, self.device)

    def distribute(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all processes."""
        if self.count == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers never change in training. torch 2.13 deprecates the older name.
        known = inspect.signature(DistributedDataParallel).parameters
        name = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known)
        options: dict[str, Any] = {name: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(module, device_ids=ids, **options)

    def sync_only_if(self, last: bool, module: nn.Module) -> AbstractContextManager[None]:
        """Synchronizes gradients between processes only with the last micro-batch."""
        if isinstance(module, DistributedDataParallel) and not last:
            return module.no_sync()
        return contextlib.nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The values summed over all processes, the same on each."""
        return values if self.count == 1 else self.accelerator.reduce(values, "sum")

    def largest(self, values: Sequence[float]) -> list[float]:
        """The maximum of each value over all processes."""
        if self.world_size == 1:
            return list(values)
        mine = torch.tensor([list(values)], dtype=torch.float64, device=self.device)
        return list(self.accelerator.gather(mine).amax(0).tolist())

    def smallest(self, value: float) -> float:
        """The minimum of the value over all processes."""
        return -self.largest([-value])[0]

    def of_main(self, text: str) -> str:
        """The text of rank 0, on every rank."""
        if self.count == 1:
            return text
        content = os.fsencode(text) if self.is_main else b""
        length = int(self.largest([len(content)])[0])
        padded = torch.tensor(list(content.ljust(length, b"\0")), device=self.device)
        return os.fsdecode(bytes(self.sum(padded).tolist()))

    def of_each(self, text: str) -> list[str]:
        """The texts of all ranks, in the order of the ranks."""
        if self.count == 1:
            return [text]
        content = os.fsencode(text)
        lengths = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        lengths[self.rank] = len(content)
        sizes = self.sum(lengths).tolist()
        padded = torch.zeros(1, max(1, *sizes), dtype=torch.uint8, device=self.device)
        padded[0, : len(content)] = torch.tensor(list(content), dtype=torch.uint8)
        texts = self.accelerator.gather(padded).cpu().numpy()
        return [os.fsdecode(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]

    @contextlib.contextmanager
    def alike(self) -> Iterator[None]:
        """A context that raises on every rank if its body raises on any: the rank's own error, or
        that of the first rank that failed. The body must not wait for other ranks after an error.
        """
        fault: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.count == 1 or _is_lost_process(error):
                raise
            fault = error
        if not self.largest([fault is not None])[0]:
            return
        own = fault if isinstance(fault, LlmkitError | None) else LlmkitError(repr(fault))
        found = self.of_each("" if own is None else json.dumps(own.described()))
        if fault is not None:
            raise fault
        rank = next(rank for rank, text in enumerate(found) if text)
        other = error_of(json.loads(found[rank]))
        other.what += f" (rank {rank})"
        raise other

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """The items that this process works on: neighbours are on different ones, so that long
        items of a sorted list are shared evenly."""
        return items[self.rank :: self.count]

    def joined(self, results: Sequence[_Item]) -> list[_Item]:
        """The results for all items, in their order and on every process, from those for the
        `share` of each. Results are values of JSON: torch would use pickle."""
        shares = [json.loads(text) for text in self.of_each(json.dumps(results))]
        found: list[Any] = [None] * sum(map(len, shares))
        for rank, each in enumerate(shares):
            found[rank :: self.count] = each
        return found

    def wait(self) -> None:
        """Waits until all processes have reached this point."""
        self.accelerator.wait_for_everyone()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Ends the process group; raises ResourceError for a lost process."""
        if error is None:
            self.accelerator.end_training()
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        # After an error, a collective with a process that hangs would hang too.
        elif self.world_size > 1 and _is_lost_process(error):
            late = "imed out" in str(error)
            raise ResourceError(
                f"another process of the run {'does not answer' if late else 'was lost'}",
                where=f"noticed by process {self.accelerator.process_index} of {self.world_size}",
                kept="all checkpoints",
                next="find the cause (its message, `dmesg`), end its remaining processes, then run "
                "the same command again to resume",
            ) from error


def join_processes(precision: str, timeout: float = TIMEOUT, one_model: bool = False) -> Processes:
    """Joins the processes that a launcher started, if any.

    `precision` is `auto`, `fp32` or `bf16`. A process that waits for another one longer than
    `timeout` seconds fails. `one_model`: see `Processes`.

    Deterministic kernels are enabled: without them, a whole-model compile on two threads differs
    from run to run, and they cost nothing measurable. Raises ResourceError if the launcher started
    several processes that cannot find each other: each would do the whole run.
    """
    device.keep_freed_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if n_processes() > 1:
        _check_devices()
        network.choose_interface()
    with _connection_errors():
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))],
        )
    launched = n_processes()
    if accelerator.num_processes != launched:
        raise ResourceError(
            f"{launched} processes were launched, {accelerator.num_processes} found each other",
            where="WORLD_SIZE",
            next=_LAUNCH,
        )
    chosen = device.resolve_precision(precision, accelerator.device)
    return Processes(accelerator, chosen, one_model)


def _check_devices() -> None:
    """Raises UsageError if `llmkit launch` has started more processes than the machine has GPUs:
    two would share one, which NCCL refuses. Under Slurm each may see only its own GPU."""
    local, gpus = os.environ.get("LOCAL_WORLD_SIZE", "1"), torch.cuda.device_count()
    if CAPTURED in os.environ and 0 < gpus < int(local):
        raise UsageError(
            f"{local} processes were launched on a machine with {gpus} GPUs",
            next=f"`llmkit launch {gpus} -- ...`; CUDA_VISIBLE_DEVICES= trains on the CPU",
        )


@contextlib.contextmanager
def _connection_errors() -> Iterator[None]:
    """Raises ResourceError if the processes cannot connect, and ConfigError if accelerate rejects
    the environment."""
    try:
        yield
    except torch.distributed.DistError as error:
        raise ResourceError(
            f"the processes of the run cannot connect: {str(error).splitlines()[0][:300]}",
            where="environment: MASTER_ADDR, MASTER_PORT",
            next=f"check that every machine reaches that address and port; {_LAUNCH}",
        ) from error
    except (ValueError, ImportError, LookupError, TypeError) as error:
        raise ConfigError(
            f"accelerate rejects the environment: {str(error).splitlines()[0][:300]}",
            where="environment: ACCELERATE_..., WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT",
            next="unset the variables you did not mean to set; list them with "
            "`env | grep ACCELERATE`",
        ) from error


def _is_lost_process(error: BaseException) -> bool:
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Timed out waiting",
        "gloo",
        "NCCL",
    )
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
