"""What torchrun and its like leave in the environment of a process that they start."""

from __future__ import annotations

import os

from llmkit.errors import UsageError

NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""What every process of several is told besides WORLD_SIZE."""


def check() -> None:
    """Raises UsageError where the environment names other processes, and not how to reach them."""
    count = _number("WORLD_SIZE", least=1)
    rank = _number("RANK", least=0)
    local = _number("LOCAL_RANK", least=0)
    if count is None:
        if rank or local:
            raise _incomplete(f"{'RANK' if rank else 'LOCAL_RANK'} is set and WORLD_SIZE is not")
        return
    if rank is not None and rank >= count:
        raise _incomplete(f"RANK={rank} is not below WORLD_SIZE={count}")
    if count == 1:
        return
    if missing := [name for name in NEEDED if not os.environ.get(name)]:
        raise _incomplete(f"WORLD_SIZE={count} is set and {' and '.join(missing)} not")
    port = _number("MASTER_PORT", least=0)
    if port is not None and port > 65535:
        raise _incomplete(f"MASTER_PORT={port} is no port")


def _number(name: str, least: int) -> int | None:
    """The whole number that a variable holds; None where it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise _incomplete(f"{name}={text!r} should be an integer of at least {least}")
    return number


def _incomplete(what: str) -> UsageError:
    fault = UsageError(
        f"the environment of a launcher is incomplete: {what}",
        where="environment: WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT",
        next="launch with `torchrun --nproc-per-node N -m llmkit ...`, or unset WORLD_SIZE, RANK "
        "and LOCAL_RANK",
    )
    fault.alone = True
    return fault
