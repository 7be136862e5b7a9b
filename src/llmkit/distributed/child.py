"""A command of llmkit in a separate process, which gets the signals that this one receives, and
does not outlive it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llmkit.distributed import signals
from llmkit.distributed.signals import StopSignal
from llmkit.errors import Interrupted, LlmkitError, ResourceError, Stopped, error_of

_PARENT = "LLMKIT_PARENT"
"""The process that has started this one."""

_PR_SET_PDEATHSIG = 1
"""A constant of linux/prctl.h."""


@dataclass(frozen=True)
class ChildResult:
    """How a command ended."""

    code: int
    """Exit code; negative for a signal that killed it."""
    printed: dict[str, Any]
    """The JSON object that it printed; empty if it printed none."""
    signal: int
    """The signal that this process passed on, or 0."""

    @property
    def fault(self) -> LlmkitError | None:
        """Its error; None if it succeeded. After a signal, any error counts as caused by it: a
        process that has just started does not handle signals yet."""
        if self.code == 0:
            return None
        if described := self.printed.get("error"):
            fault = error_of(described)
            if not self.signal or isinstance(fault, Interrupted | Stopped):
                return fault
        if self.signal:
            return signals.stopped_by(self.signal)
        if self.code < 0:
            return killed(-self.code, "the process of the run")
        return LlmkitError(f"the process of the run ended with exit code {self.code}")

    @property
    def was_stopped(self) -> bool:
        """Whether a signal asked it to stop, and everything is saved."""
        return isinstance(self.fault, Interrupted | Stopped)


def killed(number: int, process: str) -> ResourceError:
    """The error of a process that a signal has ended."""
    return ResourceError(
        f"{process} was ended by {signal.Signals(number).name}",
        kept="everything saved before",
        next="run the same command again to resume; if memory ran out, lower "
        "train.micro_batch_size, which changes no result; `dmesg` shows what ended it",
    )


def llmkit_command(words: Sequence[str]) -> list[str]:
    """The command of a process that runs a command line of this llmkit."""
    return [sys.executable, "-m", "llmkit", *words]


def start_child(
    command: Sequence[str], variables: Mapping[str, str] | None = None, **streams: Any
) -> subprocess.Popen[bytes]:
    """Starts a process of llmkit in an environment with more variables.

    It has a separate process group: a Ctrl-C of the terminal reaches only this process, which
    passes each signal on exactly once. It is stopped by SIGTERM if this process ends before it.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(variables or {}), _PARENT: str(os.getpid())},
        process_group=0,
        **streams,
    )


def end_with_parent() -> None:
    """Has this process stopped by SIGTERM when the llmkit that has started it ends, however it
    ends. Only Linux can do it."""
    parent = os.environ.pop(_PARENT, None)
    if parent is None:
        return
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if str(os.getppid()) != parent:  # it has ended before
        signal.raise_signal(signal.SIGTERM)


def run_command_line(words: Sequence[str], stop: StopSignal, *, shown: bool) -> ChildResult:
    """Runs a command line of llmkit, which must contain `--json`, to its end.

    `shown` lets it write to this process's stderr.
    """
    stderr = None if shown else subprocess.DEVNULL
    with (
        start_child(llmkit_command(words), stdout=subprocess.PIPE, stderr=stderr) as child,
        signals.passed_on_to([child.pid], stop),
    ):
        said = child.communicate()[0]
    return ChildResult(child.returncode, _object(said), stop.received)


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
