"""What a user sees of a command: messages, progress with the time left, and the result."""

from __future__ import annotations

import json as jsonlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import IO, Any, cast

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import Progress, ProgressColumn
from rich.progress import Task as RichTask
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from llmkit.distributed.launcher import is_main_process
from llmkit.progress import Advance
from llmkit.reporting.format import clock, printable

LOADING_SECONDS = 0.2
"""How long work may last before a terminal shows what it is: a user who sees nothing for a second
doubts that anything happens, and Python needs half of it to begin."""

LOADING_MODEL = "loading the model…"
"""What a command waits for before it uses a model."""

PLAIN_SECONDS = 10.0
"""Without a terminal, progress is printed at most this often."""


WIDEST_BAR, NARROWEST_BAR = 20, 4
"""Widths of a progress bar in characters; a narrower one is omitted."""


class ProgressLine(ProgressColumn):
    """One line for a piece of work that always fits the terminal: what is done, a bar, the time
    left, and as many figures as there is room for, the most important first.

    Work of unknown length, or with nothing left to count, has a spinner and the time so far, never
    a full bar.
    """

    def __init__(self, console: RichConsole) -> None:
        super().__init__()
        self.console = console
        self.spinner = Spinner("dots")

    def render(self, task: RichTask) -> Table:
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

    def _texts(self, task: RichTask, counts: bool) -> tuple[str, str, list[str]]:
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


class _Stderr:
    """The current `sys.stderr`; output that it cannot write (full disk, broken pipe) is dropped, so
    that the run continues."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


class Console:
    """The output of a command: human-readable messages on stderr, results on stdout."""

    def __init__(
        self,
        json: bool = False,
        quiet: bool = False,
        warnings: list[str] | None = None,
        collected: list[dict[str, Any]] | None = None,
    ) -> None:
        self.json = json
        self.collected = collected
        """Where predictions and generated texts are added for a caller in Python; None if they are
        printed."""
        self.silent = quiet or not is_main_process()
        stderr = cast(IO[str], _Stderr())
        self.stderr = RichConsole(file=stderr, highlight=False, soft_wrap=True)
        self.warnings: list[str] = [] if warnings is None else warnings
        """All warnings so far, without repeats; the result of the command includes them."""
        self.notes: list[str] = []
        """All messages so far, also with --quiet; a run keeps those from before its first step."""

    @property
    def is_live(self) -> bool:
        """Whether lines on the screen can be drawn again: not in a pipe, nor with TERM=dumb."""
        terminal = self.stderr.is_terminal and not self.stderr.is_dumb_terminal
        return terminal and not self.silent

    def say(self, text: str) -> None:
        """Prints a message on stderr; nothing with --quiet."""
        self.notes.append(text)
        if not self.silent:
            self._print(Text(printable(text)))

    def show(self, text: Text) -> None:
        """Prints text of a model or of the data on stderr; nothing with --quiet."""
        if not self.silent:
            self.stderr.print(text)

    def warn(self, text: str) -> None:
        """Prints a warning on stderr, even with --quiet, and keeps it for the result."""
        if text not in self.warnings:
            self.warnings.append(text)
        if is_main_process():
            self._print(Text(f"warning: {printable(text)}", style="yellow"))

    def _print(self, text: Text) -> None:
        """Prints lines on stderr; a terminal's are folded between words where nothing is indented
        or likely to be copied."""
        self.stderr.print(text, soft_wrap=not self.is_live or text.plain.startswith(" "))

    def result(self, figures: Mapping[str, Any]) -> None:
        """Prints the result of the command: one JSON object with --json, else figures and tables;
        after training, a summary.

        The JSON object lists the command's warnings under `warnings`.
        """
        if not is_main_process():
            return
        if self.json:
            figures = {**figures, "warnings": self.warnings}
            line = jsonlib.dumps(figures, ensure_ascii=False)
            # A lone surrogate, from a file name that is not UTF-8, becomes a JSON escape.
            print(line.encode("utf-8", "backslashreplace").decode(), flush=True)
        elif not self.silent:
            self._print_result(figures)

    def _print_result(self, figures: Mapping[str, Any]) -> None:
        """Prints a summary of training, an evaluation or a sweep with its tables, or the figures of
        another result, which for predictions ends with a sentence of counts."""
        from llmkit.reporting import (
            evaluation_summary,
            predictions,
            summary,
            sweep_summary,
            tables,
        )

        before: Iterable[str] = ()
        after: Iterable[str] = ()
        if sweep_summary.describes_sweep(figures):
            after = sweep_summary.of_sweep(figures)
            figures = {"runs": sweep_summary.sweep_rows(figures, RichConsole().width)}
        elif summary.is_training(figures):
            before = summary.of_training(figures)
            figures = {key: figures[key] for key in ("domains",) if key in figures}
        elif evaluation_summary.is_evaluation(figures):
            before, figures, after = evaluation_summary.arrange_evaluation(figures)
        elif figures.get("command") == "predict" and "examples" in figures:
            after = filter(None, [predictions.counts_sentence(figures)])
            figures = predictions.without_counts(figures)
        _print_lines(before)
        if sys.stdout.isatty():
            tables.show(figures, RichConsole(highlight=False))
        else:
            text = tables.result_text(figures).encode("utf-8", "backslashreplace").decode()
            print(text, end="", flush=True)
        _print_lines(after)

    def loading(self) -> AbstractContextManager[None]:
        """Shows on a terminal that the libraries are loading, if that takes long."""
        return self.waiting("loading torch and transformers…")

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Shows on a terminal what the command waits for, if that takes long."""
        if not self.is_live:
            yield
            return
        status = self.stderr.status(text)
        later = threading.Timer(LOADING_SECONDS, status.start)
        later.start()
        try:
            yield
        finally:
            later.cancel()
            later.join()
            status.stop()

    @contextmanager
    def watch(self, label: str, total: int) -> Iterator[Advance]:
        """Shows the progress of a task; yields a function to call with each amount done."""
        if not self.is_live:
            yield self._plain_watch(label, total)
            return
        with Progress(ProgressLine(self.stderr), console=self.stderr, transient=True) as progress:
            task = progress.add_task(label, total=total)
            yield lambda amount: progress.advance(task, amount)

    def _plain_watch(self, label: str, total: int) -> Advance:
        done, start = 0, time.monotonic()
        last_shown = start

        def advance(amount: int) -> None:
            nonlocal done, last_shown
            done += amount
            now = time.monotonic()
            if now - last_shown >= PLAIN_SECONDS and 0 < done < total:
                last_shown = now
                left = (now - start) * (total - done) / done
                self.say(f"{label}: {100 * done / total:.0f}%, {clock(left)} left")

        return advance


def _print_lines(lines: Iterable[str]) -> None:
    """Prints lines on stdout; on a terminal, sentences are folded between words, paths not at
    all."""
    for line in map(printable, lines):
        if sys.stdout.isatty():
            RichConsole(highlight=False).print(Text(line), soft_wrap=line.startswith(" "))
        else:
            # A lone surrogate, from a file name that is not UTF-8, is escaped.
            print(line.encode("utf-8", "backslashreplace").decode(), flush=True)
