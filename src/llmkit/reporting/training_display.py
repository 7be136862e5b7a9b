"""The training display: a progress bar with figures on a terminal, plain lines elsewhere."""

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
from llmkit.reporting.console import Console
from llmkit.reporting.format import clock, short

BAR = 20
"""Width of the bar in characters."""

_SHORT_NAMES = {"train_loss": "loss", "learning_rate": "lr"}
"""Names of figures on the screen, where they are shorter than the key."""


class TrainingDisplay:
    """Shows step, time left, loss, speed, memory and other figures of a running training."""

    def __init__(self, console: Console, step: int, progress: Progress | None) -> None:
        self.console = console
        self.progress = progress
        self.task: TaskID | None = None
        self.start, self.first_step = time.monotonic(), step
        self.figures: list[str] = []
        """The figures of the last logged step, the most important first."""

    def show(self, step: int, total: int) -> None:
        """Adds the bar to the screen, at the current step."""
        if self.progress is not None:
            self.task = self.progress.add_task(
                "step", total=total, completed=step, left="", figures=()
            )

    def step(self, step: int, total: int) -> None:
        """Updates the bar."""
        if self.progress is not None and self.task is not None:
            left = f"{clock(self.seconds_left(step, total))} left"
            self.progress.update(
                self.task, completed=step, total=total, figures=self.figures, left=left
            )

    def log(self, step: int, total: int, figures: dict[str, float], speed: list[str]) -> None:
        """Shows the figures of a logged step; without a terminal, on a separate line."""
        texts = {
            name: f"{_SHORT_NAMES.get(name, name.replace('_', ' '))} {value:.4g}"
            for name, value in figures.items()
        }
        loss = texts.pop("train_loss", "")
        self.figures = [loss, *speed[:1], f"{short(memory_used())}B", *texts.values(), *speed[1:]]
        if self.progress is None:
            left = clock(self.seconds_left(step, total))
            self.console.say(f"step {step}/{total}  {'  '.join(self.figures)}  {left} left")
        self.step(step, total)

    @contextmanager
    def watch(self, label: str, total: int) -> Iterator[Advance]:
        """Shows the progress of a task between the steps, such as a validation."""
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
        """Seconds that the remaining steps take at the speed so far."""
        done = max(1, step - self.first_step)
        return (time.monotonic() - self.start) * (total - step) / done


def memory_used() -> int:
    """Bytes of memory that this process uses: peak GPU memory with CUDA, else resident memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)


class FiguresColumn(ProgressColumn):
    """Shows as many figures as fit on the line, the most important first."""

    def __init__(self, console: RichConsole) -> None:
        super().__init__()
        self.console = console

    def render(self, task: RichTask) -> Text:
        """Returns the figures of a task that fit into the space after the other columns."""
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
    """Opens the display for a run at `step` of `total`."""
    if console.silent or not console.stderr.is_terminal:
        yield TrainingDisplay(console, step, None)
        return
    columns = (
        TextColumn("{task.description} {task.completed}/{task.total}"),
        BarColumn(bar_width=BAR),
        TextColumn("{task.fields[left]}"),
        FiguresColumn(console.stderr),
    )
    with Progress(*columns, console=console.stderr, refresh_per_second=4) as progress:
        display = TrainingDisplay(console, step, progress)
        display.show(step, total)
        yield display
