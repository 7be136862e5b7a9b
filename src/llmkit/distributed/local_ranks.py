"""The processes of a run on this machine: started together, watched, and ended together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from llmkit.distributed import signals
from llmkit.distributed.child import killed, start_child
from llmkit.distributed.launcher import CAPTURED
from llmkit.distributed.signals import StopSignal
from llmkit.errors import Interrupted, LlmkitError, ResourceError, Stopped

GRACE = 10.0
"""Seconds that the other processes have to notice a lost one and report it."""

DEFAULT_PORT = 29500
"""The port of rank 0 in a run on several machines, as of torchrun."""

_LOOPBACK = "127.0.0.1"
_LINES = 40
"""Lines that are kept of what a process writes to stderr."""
_PAUSE = 0.05
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class MachineShare:
    """This machine's share of the processes of a run."""

    local: int
    """Processes on each machine."""
    nodes: int = 1
    node: int = 0
    """The number of this machine, from 0."""
    address: str = _LOOPBACK
    """The name or address of machine 0."""
    port: int | None = None
    """The port of rank 0; None for a free one on this machine."""

    @property
    def ranks(self) -> range:
        """The ranks of the processes on this machine."""
        return range(self.node * self.local, (self.node + 1) * self.local)

    def variables(self, rank: int, port: int) -> dict[str, str]:
        """The environment of one process; its threads share the cores of the machine, unless
        OMP_NUM_THREADS is set."""
        threads = max(1, (os.cpu_count() or 1) // self.local)
        return {
            "RANK": str(rank),
            "WORLD_SIZE": str(self.local * self.nodes),
            "LOCAL_RANK": str(rank - self.ranks.start),
            "LOCAL_WORLD_SIZE": str(self.local),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
            CAPTURED: "1",
        }


class LocalRank:
    """A process of the run. The stderr of rank 0 is shown as it is written; of every other process
    the last lines are kept, and so is stdout with `--json`."""

    def __init__(self, share: MachineShare, rank: int, port: int, command: Sequence[str]) -> None:
        self.rank, json = rank, "--json" in command
        stderr = None if rank == 0 else subprocess.PIPE
        stdout = subprocess.PIPE if json else None if rank == 0 else subprocess.DEVNULL
        self.process = start_child(
            command, share.variables(rank, port), stdout=stdout, stderr=stderr
        )
        self.last: deque[bytes] = deque(maxlen=_LINES)
        self.printed: list[bytes] = []
        kept = ((self.process.stderr, self.last), (self.process.stdout, self.printed))
        self._readers = [
            threading.Thread(target=_keep, args=(stream, lines), daemon=True)
            for stream, lines in kept
            if stream is not None
        ]
        for each in self._readers:
            each.start()

    @property
    def code(self) -> int | None:
        """The exit code; negative for a signal, None while the process runs."""
        return self.process.poll()

    def close(self) -> None:
        """Ends what the process has left running if it failed, and waits for its last output."""
        if _is_failure(self.code):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        for each in self._readers:
            each.join(timeout=1)


def _keep(stream: IO[bytes], lines: deque[bytes] | list[bytes]) -> None:
    with stream:
        lines.extend(iter(stream.readline, b""))


@dataclass(frozen=True)
class RunEnd:
    """How the processes of a machine have ended."""

    cause: LocalRank | None
    """The process that failed first; None if all succeeded."""
    first: LocalRank
    signal: int
    """The signal that stopped them, or 0."""

    @property
    def fault(self) -> LlmkitError | None:
        """The error of a process that a signal has ended, which could not report it."""
        code = self.cause.code if self.cause is not None else None
        if self.cause is None or code is None or code >= 0:
            return None
        if self.signal == -code:  # before it could handle signals
            return signals.stopped_by(self.signal)
        return killed(-code, f"rank {self.cause.rank}")

    @property
    def code(self) -> int:
        """The exit code of the run."""
        if self.fault is not None:
            return self.fault.exit_code
        return 0 if self.cause is None else int(self.cause.code or 0)

    @property
    def may_restart(self) -> bool:
        """Whether the same command may succeed now: a process was lost, or memory ran out."""
        return self.code == ResourceError.exit_code and not self.signal


def run_local_ranks(
    share: MachineShare, command: Sequence[str], stop: StopSignal, grace: float = GRACE
) -> RunEnd:
    """Runs a command in the processes of this machine, to their end.

    Once a process fails, the others have `grace` seconds to notice it, then as long after SIGTERM,
    then they are killed. A stop signal is passed on, and may take as long as a save takes.
    """
    port = _free_port() if share.port is None else share.port
    ranks = [LocalRank(share, rank, port, command) for rank in share.ranks]
    ended: list[LocalRank] = []
    with signals.passed_on_to([each.process.pid for each in ranks], stop):
        deadline, last = None, signal.SIGTERM
        while len(ended) < len(ranks):
            new = [each for each in ranks if each not in ended and each.code is not None]
            ended += sorted(new, key=_importance)
            if deadline is None and any(_is_failure(each.code) for each in new):
                deadline = time.monotonic() + grace
            if deadline is not None and time.monotonic() > deadline:
                for each in ranks:
                    if each.code is None:
                        each.process.send_signal(last)
                deadline, last = time.monotonic() + grace, signal.SIGKILL
            time.sleep(_PAUSE)
    for each in ranks:
        each.close()
    failed = [each for each in ended if each.code]
    cause = min(failed, key=lambda each: _importance(each) > 0) if failed else None
    if cause is not None and ranks[0].code == cause.code:
        cause = ranks[0]  # its message is on the screen already
    return RunEnd(cause, ranks[0], stop.received)


def _is_failure(code: int | None) -> bool:
    """Whether the other processes may have to be ended: they stop together after a signal."""
    return code not in (None, 0, Stopped.exit_code, Interrupted.exit_code)


def _importance(ended: LocalRank) -> int:
    """Where processes that ended at the same time belong among each other, the cause first: a lost
    process makes all others end with 71, or NCCL abort them."""
    code = ended.code or 0
    return 2 if code in (0, ResourceError.exit_code) else 1 if code < 0 else 0


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((_LOOPBACK, 0))
        return int(free.getsockname()[1])
