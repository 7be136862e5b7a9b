"""The training display: a progress bar with figures on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from rich.progress import Progress, TaskID

from llmkit.progress import Advance
from llmkit.reporting.console import Console
from llmkit.reporting.format import clock, short
from llmkit.reporting.progress.progress_line import ProgressLine

_SHORT_NAMES = {"train_loss": "loss", "learning_rate": "lr"}
"""Names of figures on the screen, where they are shorter than the key."""


class TrainingDisplay:
    """Shows step, time left, loss, speed, memory and other figures of a running training."""

    def __init__(
        self, console: Console, step: int, progress: Progress | None, compiles: bool = False
    ) -> None:
        self.console = console
        self.progress = progress
        self.task: TaskID | None = None
        self.first_step = step
        self.began: float | None = None
        """When the first step had ended, which may include compilation."""
        self.figures: list[str] = ["compiling the model"] if compiles else []
        """The figures of the last logged step, the most important first."""
        self.is_estimate = False
        """Whether the number of steps is an estimate, by a time limit."""

    def show(self, step: int, total: int) -> None:
        """Adds the bar to the screen, at the current step."""
        if self.progress is not None:
            self.task = self.progress.add_task("step", done="", left="", figures=())
            self.step(step, total)

    def step(self, step: int, total: int) -> None:
        """Updates the bar."""
        if self.began is None and step > self.first_step:
            self.began, self.first_step = time.monotonic(), step
        if self.progress is not None and self.task is not None:
            self.progress.update(
                self.task,
                completed=step,
                total=total,
                done=self.done(step, total),
                left=self.left(step, total),
                figures=self.figures,
            )

    def end(self) -> None:
        """Leaves the line on the screen as it is."""
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, ended=True)

    def done(self, step: int, total: int) -> str:
        """The step, of how many."""
        return f"step {step}/{'~' if self.is_estimate and step < total else ''}{total}"

    def left(self, step: int, total: int) -> str:
        """The time that the remaining steps take at the speed so far, where there is one."""
        done = step - self.first_step
        if self.began is None or done < 1 or step >= total:
            return ""
        seconds = (time.monotonic() - self.began) * (total - step) / done
        return f"{clock(seconds)} left"

    def log(self, step: int, total: int, figures: dict[str, float], speed: list[str]) -> None:
        """Shows the figures of a logged step; without a terminal, on a separate line."""
        texts = {
            name: f"{_SHORT_NAMES.get(name, name.replace('_', ' '))} {value:.4g}"
            for name, value in figures.items()
        }
        loss = texts.pop("train_loss", "")
        self.figures = [loss, *speed[:1], f"{short(memory_used())}B", *texts.values(), *speed[1:]]
        self.step(step, total)
        if self.progress is None:
            shown = (self.done(step, total), *self.figures, self.left(step, total))
            self.console.say("  ".join(filter(None, shown)))

    @contextmanager
    def watch(self, label: str, total: int) -> Iterator[Advance]:
        """Shows the progress of a task between the steps, such as a validation."""
        if self.progress is None:
            with self.console.watch(label, total) as advance:
                yield advance
            return
        progress = self.progress
        task = progress.add_task(label, total=total)
        try:
            yield lambda amount: progress.advance(task, amount)
        finally:
            progress.remove_task(task)


def memory_used() -> int:
    """Bytes of memory that this process uses: peak GPU memory with CUDA, else resident memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)


@contextmanager
def training_display(
    console: Console, step: int, total: int, compiles: bool = False
) -> Iterator[TrainingDisplay]:
    """Opens the display for a run at `step` of `total`, whose first step may compile the model."""
    if not console.is_live:
        yield TrainingDisplay(console, step, None)
        return
    line = ProgressLine(console.stderr)
    with Progress(line, console=console.stderr, refresh_per_second=4) as progress:
        display = TrainingDisplay(console, step, progress, compiles)
        display.show(step, total)
        try:
            yield display
        finally:
            display.end()
