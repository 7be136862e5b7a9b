"""`llmkit launch`: a command in several processes of this machine, or of several machines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from llmkit.distributed import slurm
from llmkit.distributed.child import llmkit_command
from llmkit.distributed.launcher import LARGEST_PORT, SHARED_COMMANDS
from llmkit.distributed.local_ranks import DEFAULT_PORT, MachineShare, RunEnd, run_local_ranks
from llmkit.distributed.signals import stop_signal
from llmkit.errors import UsageError
from llmkit.reporting.console import Console
from llmkit.reporting.format import printable

_USE = "`llmkit launch N -- COMMAND ...`, such as `llmkit launch 2 -- pretrain --text corpus.txt`"


@dataclass(frozen=True)
class Launch:
    """What to launch, and how often again after a process was lost."""

    share: MachineShare
    words: Sequence[str]
    restarts: int

    def carry_out(self, console: Console) -> int:
        """Runs the command, and returns its exit code: that of the process that failed first, and
        71 only if no process failed for a reason other than a lost process.

        Raises ResourceError, or Stopped, for a process that a signal has ended.
        """
        if self.share.nodes > 1:
            share, ranks = self.share, self.share.ranks
            console.say(
                f"machine {share.node} of {share.nodes}: ranks {ranks[0]} to {ranks[-1]}, "
                f"rank 0 at {share.address}:{share.port}"
            )
        with stop_signal() as stop:
            for left in range(self.restarts, -1, -1):
                outcome = run_local_ranks(self.share, llmkit_command(self.words), stop)
                if not (outcome.may_restart and left):
                    break
                _show_last(outcome, console)
                why = outcome.fault.what if outcome.fault is not None else "a process was lost"
                number = self.restarts - left + 1
                console.warn(f"{why}: restart {number} of {self.restarts}")
        _show_last(outcome, console)
        if outcome.fault is not None:
            raise outcome.fault
        _print_result(outcome)
        return outcome.code


def plan_launch(
    words: Sequence[str],
    local: int | None,
    place: tuple[int | None, int | None, str | None, int | None],
    restarts: int,
) -> Launch:
    """The launch of a command line; `place` is the number of machines, the number of this one, the
    address of machine 0, and its port.

    In a job step of Slurm with one task per machine, the step has all of it. Raises UsageError for
    what cannot be launched.
    """
    words = words[1:] if words[:1] == ["llmkit"] else words
    if local is None or not words:
        raise UsageError("`llmkit launch` needs a number of processes and a command", next=_USE)
    if local < 1 or restarts < 0:
        raise UsageError("a number is too small", next="N should be int >= 1, --restarts int >= 0")
    if words[0].startswith("-"):
        raise UsageError("no such option", where=words[0], next=_USE)
    if words[0] not in SHARED_COMMANDS:
        raise UsageError(
            f"`{words[0]}` cannot be shared by several processes",
            where=f"-- {words[0]}",
            next=f"launch one of {', '.join(SHARED_COMMANDS)}",
        )
    return Launch(_share(local, *place), words, restarts)


def _share(
    local: int, nodes: int | None, node: int | None, address: str | None, port: int | None
) -> MachineShare:
    task = slurm.read_step()
    if task is not None and task.local_count == 1:
        nodes = task.count if nodes is None else nodes
        node = task.rank if node is None else node
        address, port = address or task.address, port or task.port
    if (nodes is None or nodes == 1) and not node:
        return MachineShare(local, port=port)
    if nodes is None or node is None or address is None:
        raise UsageError(
            "several machines need `--nodes`, `--node` and `--address`",
            next="run the same command on each of M machines with `--nodes M --node I --address "
            "HOST`: I is 0 on HOST, then 1, 2, ...",
        )
    if not 0 <= node < nodes or not 0 < (port or DEFAULT_PORT) <= LARGEST_PORT:
        raise UsageError(
            f"there is no machine {node} of {nodes}, or no port {port}",
            next="--node should be int >= 0 and < --nodes, --port int >= 1 and <= 65535",
        )
    return MachineShare(local, nodes, node, address, port or DEFAULT_PORT)


def _show_last(outcome: RunEnd, console: Console) -> None:
    """Prints the last stderr of the process that failed; rank 0's has been shown already."""
    if outcome.cause is None:
        return
    for line in outcome.cause.last:
        text = line.decode(errors="replace").rstrip()
        console.show(Text(printable(f"[rank {outcome.cause.rank}] {text}")))


def _print_result(outcome: RunEnd) -> None:
    """Prints the JSON of the process that failed, or of the first one."""
    shown = outcome.cause if outcome.cause is not None and outcome.cause.printed else outcome.first
    sys.stdout.buffer.write(b"".join(shown.printed))
    sys.stdout.flush()
