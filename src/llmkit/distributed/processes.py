"""The processes and devices of a run: accelerate launches, places and reduces; nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmkit.distributed import device
from llmkit.distributed.launcher import is_main_process, n_processes
from llmkit.errors import ConfigError, ResourceError


@dataclass(frozen=True)
class Processes:
    """This process among those of the run, and its device."""

    accelerator: Accelerator
    precision: str
    """`fp32` or `bf16`: arithmetic of the forward and backward pass."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def count(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return is_main_process()

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device(self.accelerator.device)

    def autocast(self) -> AbstractContextManager[None]:
        """Computes in bf16 where the run does; weights stay fp32.

        Not accelerate's: that one copies every output to fp32, logits too.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def in_training(self) -> AbstractContextManager[None]:
        """The same for a step of training, which needs no true fp32 on a GPU."""
        return device.in_training(self.precision, self.device)

    def distribute(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all processes."""
        if self.count == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers never change in training. torch 2.13 warns of the older name.
        known = inspect.signature(DistributedDataParallel).parameters
        name = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known)
        options: dict[str, Any] = {name: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(module, device_ids=ids, **options)

    def sync_only_if(self, last: bool, module: nn.Module) -> AbstractContextManager[None]:
        """Gradients travel between processes with the last micro-batch only."""
        if isinstance(module, DistributedDataParallel) and not last:
            return module.no_sync()
        return contextlib.nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The values summed over all processes, the same on each."""
        return values if self.count == 1 else self.accelerator.reduce(values, "sum")

    def largest(self, values: Sequence[float]) -> list[float]:
        """Each value's largest over all processes."""
        if self.count == 1:
            return list(values)
        mine = torch.tensor([list(values)], dtype=torch.float64, device=self.device)
        return list(self.accelerator.gather(mine).amax(0).tolist())

    def smallest(self, value: float) -> float:
        """The value's smallest over all processes."""
        return -self.largest([-value])[0]

    def start_trackers(self, config: Mapping[str, Any]) -> None:
        """Opens the trackers of `report_to` with the flat config of the run."""
        plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in config.items()}
        self.accelerator.init_trackers("llmkit", config=plain)

    def track(self, figures: Mapping[str, float], step: int) -> None:
        """Hands figures to the trackers of `report_to`."""
        self.accelerator.log(dict(figures), step=step)

    def wait(self) -> None:
        """Returns when all processes have come here."""
        self.accelerator.wait_for_everyone()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Lets go of the trackers and of the other processes; a lost one is named as that."""
        if error is None:
            self.accelerator.end_training()
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        # After an error, taking leave of a process that hangs would hang too.
        elif self.count > 1 and _is_lost_process(error):
            late = "imed out" in str(error)
            raise ResourceError(
                f"another process of the run {'does not answer' if late else 'was lost'}",
                where=f"process {self.rank} of {self.count} noticed it",
                kept="all checkpoints",
                next="see why (its message, `dmesg`), end what is left of it, then run the same "
                "command again to resume",
            ) from error


def join_processes(
    wish: str, report_to: Sequence[str], directory: Path, timeout: float = 1800
) -> Processes:
    """Joins the processes that torchrun or accelerate launch started, if any; `wish` is the
    precision that was asked for.

    A process that waits for another one longer than `timeout` seconds gives up.

    Deterministic kernels are on: a whole-model compile on two threads differs from run to run
    without them, and they cost nothing measurable. Raises ResourceError when the launcher started
    several processes that do not find each other: they would be copies of one run.
    """
    device.keep_freed_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    with _named_faults():
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no",
            log_with=list(report_to) or None,
            project_dir=str(directory),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))],
        )
    launched = n_processes()
    if accelerator.num_processes != launched:
        raise ResourceError(
            f"{launched} processes were launched, {accelerator.num_processes} found each other",
            where="WORLD_SIZE",
            next="launch with torchrun --nproc-per-node N -m llmkit ...",
        )
    return Processes(accelerator, device.resolve_precision(wish, accelerator.device))


@contextlib.contextmanager
def _named_faults() -> Iterator[None]:
    """Raises ResourceError where the processes of a run do not meet, and ConfigError for what
    accelerate refuses in the environment."""
    try:
        yield
    except torch.distributed.DistError as error:
        raise ResourceError(
            f"the processes of the run do not find each other: {str(error).splitlines()[0][:300]}",
            where="environment: MASTER_ADDR, MASTER_PORT",
            next="launch with torchrun --nproc-per-node N -m llmkit ...",
        ) from error
    except (ValueError, ImportError, LookupError, TypeError) as error:
        raise ConfigError(
            f"accelerate refuses the environment: {str(error).splitlines()[0][:300]}",
            where="environment: ACCELERATE_..., WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT",
            next="unset what you did not mean to set; `env | grep ACCELERATE` lists it",
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
