"""A command of llmkit in a separate process, which gets the signals that this one receives."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.distributed import signals
from llmkit.distributed.signals import StopSignal
from llmkit.errors import Interrupted, LlmkitError, ResourceError, Stopped, error_of


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
            name = signal.Signals(-self.code).name
            return ResourceError(
                f"the process of the run was ended by {name}",
                kept="everything saved before",
                next="if memory ran out, lower train.micro_batch_size, which changes no result; "
                "`dmesg` shows what ended it",
            )
        return LlmkitError(f"the process of the run ended with exit code {self.code}")

    @property
    def was_stopped(self) -> bool:
        """Whether a signal asked it to stop, and everything is saved."""
        return isinstance(self.fault, Interrupted | Stopped)


def run_command_line(words: Sequence[str], stop: StopSignal, *, shown: bool) -> ChildResult:
    """Runs a command line of llmkit, which must contain `--json`, to its end.

    `shown` lets it write to this process's stderr. It has a separate process group: a Ctrl-C of the
    terminal reaches only this process, which passes each signal on exactly once.
    """
    command = [sys.executable, "-m", "llmkit", *words]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=None if shown else subprocess.DEVNULL,
        process_group=0,
    ) as child:
        signals.state.passed_on, signals.state.child = 0, child.pid
        try:
            if stop.received and not signals.state.passed_on:  # it came before the child
                signals.state.pass_on(stop.received)
            said = child.communicate()[0]
        finally:
            signals.state.child = 0
    return ChildResult(child.returncode, _object(said), stop.received)


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
