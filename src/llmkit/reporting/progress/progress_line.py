"""A line of progress that fits every terminal."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.progress import ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from llmkit.reporting.format import clock

WIDEST_BAR, NARROWEST_BAR = 20, 4
"""Widths of a progress bar in characters; a narrower one is omitted."""


class ProgressLine(ProgressColumn):
    """One line for a piece of work that always fits the terminal: what is done, a bar, the time
    left, and as many figures as there is room for, the most important first.

    Work of unknown length, or with nothing left to count, has a spinner and the time so far, never
    a full bar.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.spinner = Spinner("dots")

    def render(self, task: Task) -> Table:
        """Lays out the line of a task, whose fields may be `done`, `left`, `figures`, and
        `ended`."""
        total = task.total or 0
        counts = task.completed < total
        done, left, figures = self._texts(task, counts)
        spins = not counts and not task.fields.get("ended")
        cells: list[RenderableType] = [self.spinner] if spins else []
        room = self.console.width - 1 - 2 * spins  # the last column may wrap
        shown = [text for text in (left, *figures[:1]) if text]
        if len(done) + sum(len(text) + 1 for text in shown) > room:  # only what tells the most
            done, shown = done.removeprefix("step "), [each.removesuffix(" left") for each in shown]
        done = _shortened(done, room - sum(len(text) + 1 for text in shown))
        room -= len(done) + sum(len(text) + 1 for text in shown)
        cells.append(Text(done))
        if counts and room > NARROWEST_BAR:
            width = min(WIDEST_BAR, room - 1)
            cells.append(ProgressBar(total, task.completed, width))
            room -= width + 1
        for text in figures[1:]:
            if len(text) + 1 > room:
                break
            shown.append(text)
            room -= len(text) + 1
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_row(*cells, *map(Text, shown))
        return line

    def _texts(self, task: Task, counts: bool) -> tuple[str, str, list[str]]:
        """What is done, the time left, and the figures."""
        if "done" in task.fields:
            return task.fields["done"], task.fields["left"], task.fields["figures"]
        if not counts:
            return f"{task.description}…", clock(task.elapsed or 0.0), []
        seconds = task.time_remaining
        left = "" if seconds is None else f"{clock(seconds)} left"
        return f"{task.description} {int(task.percentage)}%", left, []


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"
