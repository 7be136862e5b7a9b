"""What a run lives in: its processes, its console, its clock and the wish to stop."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.distributed.processes import Processes
from llmkit.distributed.signals import StopSignal
from llmkit.reporting.console import Console
from llmkit.training.budget import Clock


@dataclass(frozen=True)
class Session:
    """The surroundings of a run."""

    processes: Processes
    console: Console
    clock: Clock
    stop: StopSignal
