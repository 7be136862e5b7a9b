"""The training display: one line of figures and a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.progress import Task as RichTask
from rich.text import Text

from llmkit.progress import Advance
from llmkit.reporting.console import Console, clock, short

BAR = 20
"""Columns of the bar."""

NAMES = {"train_loss": "loss", "learning_rate": "lr"}
"""What figures are called on the screen."""


class TrainingDisplay:
    """Step, time left, loss, speed, memory and the like of a run that is under way."""

    def __init__(self, console: Console, step: int, progress: Progress | None) -> None:
        self.console = console
        self.progress = progress
        self.task: TaskID | None = None
        self.start, self.first_step = time.monotonic(), step
        self.figures: list[str] = []
        """What is shown of the last logged step, the most important first."""

    def show(self, step: int, total: int) -> None:
        """Puts the bar on the screen, where the run stands."""
        if self.progress is not None:
            self.task = self.progress.add_task(
                "step", total=total, completed=step, left="", figures=()
            )

    def step(self, step: int, total: int) -> None:
        """Moves the bar."""
        if self.progress is not None and self.task is not None:
            left = f"{clock(self.seconds_left(step, total))} left"
            self.progress.update(
                self.task, completed=step, total=total, figures=self.figures, left=left
            )

    def log(self, step: int, total: int, figures: dict[str, float], speed: list[str]) -> None:
        """Shows the figures of a logged step; off a terminal it is a line of its own."""
        said = {
            name: f"{NAMES.get(name, name.replace('_', ' '))} {value:.4g}"
            for name, value in figures.items()
        }
        loss = said.pop("train_loss", "")
        self.figures = [loss, *speed[:1], f"{short(memory_used())}B", *said.values(), *speed[1:]]
        if self.progress is None:
            left = clock(self.seconds_left(step, total))
            self.console.say(f"step {step}/{total}  {'  '.join(self.figures)}  {left} left")
        self.step(step, total)

    @contextmanager
    def watch(self, label: str, total: int) -> Iterator[Advance]:
        """Shows a piece of work between the steps, such as a validation."""
        if self.progress is None:
            with self.console.watch(label, total) as advance:
                yield advance
            return
        progress = self.progress
        task = progress.add_task(label, total=total, figures=(), left="")
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


class FiguresColumn(ProgressColumn):
    """As many figures as the line has room for, whole ones, the most important first."""

    def __init__(self, console: RichConsole) -> None:
        super().__init__()
        self.console = console

    def render(self, task: RichTask) -> Text:
        """The figures of a task, in what the columns before them leave of the line."""
        done = f"{task.description} {task.completed:.0f}/{task.total or 0:.0f}"
        room = self.console.width - len(done) - BAR - len(str(task.fields["left"])) - 4
        shown = ""
        for part in task.fields["figures"]:
            if len(shown) + len(part) + 2 > room:
                break
            shown += f"  {part}" if shown else part
        return Text(shown)


@contextmanager
def training_display(console: Console, step: int, total: int) -> Iterator[TrainingDisplay]:
    """Opens the display for a run that stands at `step` of `total`."""
    if console.silent or not console.people.is_terminal:
        yield TrainingDisplay(console, step, None)
        return
    columns = (
        TextColumn("{task.description} {task.completed}/{task.total}"),
        BarColumn(bar_width=BAR),
        TextColumn("{task.fields[left]}"),
        FiguresColumn(console.people),
    )
    with Progress(*columns, console=console.people, refresh_per_second=4) as progress:
        display = TrainingDisplay(console, step, progress)
        display.show(step, total)
        yield display
