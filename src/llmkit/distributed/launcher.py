"""Rank and world size, as `llmkit launch`, torchrun, accelerate launch or srun set them in the
environment."""

from __future__ import annotations

import os

from llmkit.distributed import slurm
from llmkit.errors import UsageError

NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""What each of several processes needs besides WORLD_SIZE."""

LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets. A single process needs none of it, but some machines set it for every
program."""

MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where mpirun sets the number of its processes."""

LARGEST_PORT = 65535

CAPTURED = "LLMKIT_CAPTURED"
"""Set by `llmkit launch`, which collects the output of each process and shows that of one."""

SHARED_COMMANDS = ("pretrain", "finetune", "evaluate", "predict", "generate", "serve")
"""The commands that can run in several processes; `serve` only with a model that is split across
them."""

_EACH = ("env",)
"""Commands that each of several processes may carry out by itself."""


def is_main_process() -> bool:
    """Whether this process is rank 0, which prints and writes for the run."""
    return os.environ.get("RANK", "0") == "0"


def reports_errors() -> bool:
    """Whether this process reports an error that every process of its machine has: rank 0, and one
    process of every other machine, whose files may differ. `llmkit launch` collects all."""
    first = os.environ.get("LOCAL_RANK") == "0"
    return is_main_process() or first or CAPTURED in os.environ


def n_processes() -> int:
    """The number of processes of the run (world size)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_environment() -> None:
    """Raises UsageError if the environment names other processes but not how to reach them.

    A single process drops the launcher's variables: it has no other process to reach.
    """
    adopt_step()
    count = _number("WORLD_SIZE", least=1)
    rank = _number("RANK", least=0)
    local = _number("LOCAL_RANK", least=-1)
    if count is None:
        for name in MPI:
            if (started := _number(name, least=0)) and started > 1:
                raise _incomplete(f"{name}={started} but WORLD_SIZE is not set")
        if rank or (local or 0) > 0:
            raise _incomplete(f"{'RANK' if rank else 'LOCAL_RANK'} is set but WORLD_SIZE is not")
    elif rank is not None and rank >= count:
        raise _incomplete(f"RANK={rank} is not below WORLD_SIZE={count}")
    elif count > 1:
        _check_rendezvous(count)
        return
    for name in LAUNCHER:
        os.environ.pop(name, None)


def adopt_step() -> None:
    """Sets what torchrun would set, where srun has started several processes and nothing else has
    set RANK."""
    if "RANK" not in os.environ and (task := slurm.read_step()) is not None:
        for name, value in task.variables().items():
            os.environ.setdefault(name, value)


def refuse_sharing_work(command: str) -> None:
    """Raises UsageError if several processes would each do the whole work of a command."""
    count = _number("WORLD_SIZE", least=0)
    if command in (*SHARED_COMMANDS, *_EACH) or "RANK" not in os.environ or (count or 1) == 1:
        return
    raise UsageError(
        f"`llmkit {command}` runs in a single process, and there are {count}",
        where="environment: WORLD_SIZE, RANK",
        next="start it without a launcher, under Slurm with `srun --ntasks 1`",
    )


def _check_rendezvous(count: int) -> None:
    if missing := [name for name in NEEDED if not os.environ.get(name)]:
        raise _incomplete(f"WORLD_SIZE={count} is set, but not {' and '.join(missing)}")
    port = _number("MASTER_PORT", least=0)
    if port is not None and port > LARGEST_PORT:
        raise _incomplete(f"MASTER_PORT={port} is not a port")


def _number(name: str, least: int) -> int | None:
    """The int value of a variable; None if it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise _incomplete(f"{name}={text!r} should be int >= {least}")
    return number


def _incomplete(what: str) -> UsageError:
    fault = UsageError(
        f"the launcher's environment is incomplete: {what}",
        where="environment: WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT",
        next="launch with `llmkit launch N -- COMMAND`, torchrun or srun, or unset WORLD_SIZE, "
        "RANK and LOCAL_RANK",
    )
    fault.alone = True
    return fault
