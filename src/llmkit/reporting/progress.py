"""The training display: one line of figures and a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from llmkit.reporting.console import Advance, Console, clock, short


class TrainingDisplay:
    """Step, loss, learning rate, speed, memory and time left of a run that is under way."""

    def __init__(self, console: Console, step: int, progress: Progress | None) -> None:
        self.console = console
        self.progress = progress
        self.task: TaskID | None = None
        self.start, self.first_step = time.monotonic(), step
        self.figures = ""
        if progress is not None:
            self.task = progress.add_task("step", total=None, figures="", left="")

    def step(self, step: int, total: int) -> None:
        """Moves the bar."""
        if self.progress is not None and self.task is not None:
            left = f"{clock(self.seconds_left(step, total))} left"
            self.progress.update(
                self.task, completed=step, total=total, figures=self.figures, left=left
            )

    def log(self, step: int, total: int, figures: dict[str, float], speed: str) -> None:
        """Shows the figures of a logged step; off a terminal it is a line of its own."""
        parts = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in figures.items()]
        parts += [speed, f"{short(memory_used())}B"]
        self.figures = "  ".join(parts)
        if self.progress is None:
            left = clock(self.seconds_left(step, total))
            self.console.say(f"step {step}/{total}  {self.figures}  {left} left")
        self.step(step, total)

    @contextmanager
    def watch(self, label: str, total: int) -> Iterator[Advance]:
        """Shows a piece of work between the steps, such as a validation.

        It never raises for a signal as other progress does: the step before it is not saved yet.
        """
        if self.progress is None:
            with self.console.watch(label, total, ticks=False) as advance:
                yield advance
            return
        progress = self.progress
        task = progress.add_task(label, total=total, figures="", left="")
        try:
            yield lambda amount: progress.advance(task, amount)
        finally:
            progress.remove_task(task)

    def seconds_left(self, step: int, total: int) -> float:
        """Time that the remaining steps take at the speed so far."""
        done = max(1, step - self.first_step)
        return (time.monotonic() - self.start) * (total - step) / done


def memory_used() -> int:
    """Bytes of memory this process holds: the accelerator's where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)


@contextmanager
def training_display(console: Console, step: int) -> Iterator[TrainingDisplay]:
    """Opens the display for a run that stands at `step`."""
    if console.silent or not console.people.is_terminal:
        yield TrainingDisplay(console, step, None)
        return
    columns = (
        TextColumn("{task.description} {task.completed}/{task.total}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console.people, refresh_per_second=4) as progress:
        yield TrainingDisplay(console, step, progress)
