"""What is shown of a run that is under way changes nothing in it."""

from __future__ import annotations

from llmkit.errors import Stopped
from llmkit.reporting.console import Console
from llmkit.reporting.progress import TrainingDisplay


def test_work_between_the_steps_is_not_broken_off_by_a_signal() -> None:
    console = Console(quiet=True)

    def stop() -> None:
        raise Stopped("stopped by SIGTERM")

    console.on_tick = stop
    with TrainingDisplay(console, 0, None).watch("validation", 2) as advance:
        advance(2)
