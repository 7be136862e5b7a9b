"""What a person sees while a command works: lines, progress with time left, and the result."""

from __future__ import annotations

import json as jsonlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from llmkit.distributed.launcher import is_main_process
from llmkit.progress import Advance

LOADING_SECONDS = 0.5
"""How long the libraries may take to load before a terminal shows it."""

PLAIN_SECONDS = 10.0
"""Without a terminal, a progress line comes this often at most."""


def printable(text: str) -> str:
    """The text without control characters that a terminal would obey."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


class _Stderr:
    """The stderr of the moment; what it does not take, its disk full or its reader gone, is lost,
    and the run is not."""

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
    """Where a command speaks: people read stderr, machines read JSON on stdout."""

    def __init__(
        self, json: bool = False, quiet: bool = False, warnings: list[str] | None = None
    ) -> None:
        self.json = json
        self.silent = quiet or not is_main_process()
        stderr = cast(IO[str], _Stderr())
        self.people = RichConsole(file=stderr, highlight=False, soft_wrap=True)
        self.warnings: list[str] = [] if warnings is None else warnings
        """Every warning so far, each once; the result of the command repeats them."""

    def say(self, text: str) -> None:
        """Prints a line for people; nothing under --quiet."""
        if not self.silent:
            self.people.print(Text(printable(text)))

    def warn(self, text: str) -> None:
        """Prints a warning, under --quiet too, and keeps it for the result."""
        if text not in self.warnings:
            self.warnings.append(text)
        if is_main_process():
            self.people.print(Text(f"warning: {printable(text)}", style="yellow"))

    def result(self, figures: Mapping[str, Any]) -> None:
        """Prints what the command found: one JSON object with --json, else figures and tables;
        after training, a summary.

        The object has the warnings of the command as a list of sentences, `warnings`.
        """
        if not is_main_process():
            return
        if self.json:
            figures = {**figures, "warnings": self.warnings}
            line = jsonlib.dumps(figures, ensure_ascii=False)
            # A lone surrogate, from a name that is not UTF-8, becomes an escape of JSON.
            print(line.encode("utf-8", "backslashreplace").decode(), flush=True)
        elif not self.silent:
            from llmkit.reporting import summary, tables  # they speak as this module does

            if summary.is_training(figures):
                print("\n".join(map(printable, summary.of_training(figures))))
                figures = {key: figures[key] for key in ("domains",) if key in figures}
            if sys.stdout.isatty():
                tables.show(figures, RichConsole(highlight=False))
            else:
                text = tables.as_text(figures).encode("utf-8", "backslashreplace").decode()
                print(text, end="", flush=True)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Shows on a terminal that the libraries are being loaded, if that takes long."""
        if self.silent or not self.people.is_terminal:
            yield
            return
        status = self.people.status("loading torch and transformers…")
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
        """Shows how far a piece of work is; what it yields is called with each amount done."""
        if self.silent or not self.people.is_terminal:
            yield self._plain_watch(label, total)
            return
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=self.people,
            transient=True,
        ) as progress:
            task = progress.add_task(label, total=total)
            yield lambda amount: progress.advance(task, amount)

    def _plain_watch(self, label: str, total: int) -> Advance:
        done, start = 0, time.monotonic()
        spoken = start

        def advance(amount: int) -> None:
            nonlocal done, spoken
            done += amount
            now = time.monotonic()
            if now - spoken >= PLAIN_SECONDS and 0 < done < total:
                spoken = now
                left = (now - start) * (total - done) / done
                self.say(f"{label}: {100 * done / total:.0f}%, {clock(left)} left")

        return advance


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(value: float) -> str:
    """A figure in a few characters: 12.3k, 1.25M, 0.0312."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.4g}"
