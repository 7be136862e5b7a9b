"""What a run lives in: its processes, its console, its clock and the wish to stop."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.reporting.console import Console
from llmkit.training.budget import Clock
from llmkit.training.runtime import Processes
from llmkit.training.signals import StopSignal


@dataclass(frozen=True)
class Session:
    """The surroundings of a run."""

    processes: Processes
    console: Console
    clock: Clock
    stop: StopSignal
