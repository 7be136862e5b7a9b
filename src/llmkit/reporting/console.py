"""What a user sees of a command: messages, progress with the time left, and the result."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import IO, Any, cast

from rich.console import Console as RichConsole
from rich.progress import Progress
from rich.text import Text

from llmkit.distributed.launcher import is_main_process
from llmkit.progress import Advance
from llmkit.reporting.format import clock, printable
from llmkit.reporting.progress.progress_line import ProgressLine
from llmkit.storage.strict_json import json_text

LOADING_SECONDS = 0.2
"""How long work may last before a terminal shows what it is: a user who sees nothing for a second
doubts that anything happens, and Python needs half of it to begin."""

PLAIN_SECONDS = 10.0
"""Without a terminal, progress is printed at most this often."""


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
            # A lone surrogate, from a file name that is not UTF-8, becomes a JSON escape.
            print(json_text(figures).encode("utf-8", "backslashreplace").decode(), flush=True)
        elif not self.silent:
            self._print_result(figures)

    def _print_result(self, figures: Mapping[str, Any]) -> None:
        """Prints a summary of training, an evaluation or a sweep with its tables, or the figures of
        another result, which for predictions ends with a sentence of counts."""
        from llmkit.reporting import (
            evaluation_summary,
            merge_summary,
            predictions,
            summary,
            sweep_summary,
            tables,
        )

        before: Iterable[str] = ()
        after: Iterable[str] = ()
        shown: tables.Layout | None = None
        if merge_summary.describes_merge(figures):
            before, figures = merge_summary.of_merge(figures), merge_summary.merge_tables(figures)
        elif sweep_summary.describes_sweep(figures):
            after = sweep_summary.of_sweep(figures)
            figures = {"runs": sweep_summary.sweep_rows(figures, RichConsole().width)}
        elif summary.is_training(figures):
            before = summary.of_training(figures)
            domains = figures.get("domains")
            figures = {"domains": summary.domain_rows(domains)} if domains else {}
        elif evaluation_summary.is_evaluation(figures):
            before, arranged, after = evaluation_summary.arrange_evaluation(figures)
            shown = tables.Layout((), list(arranged.items()))
        elif figures.get("command") == "predict" and "examples" in figures:
            after = filter(None, [predictions.counts_sentence(figures)])
            figures = predictions.without_counts(figures)
        _print_lines(before)
        shown = shown or tables.layout(figures)
        if sys.stdout.isatty():
            tables.show(shown, RichConsole(highlight=False))
        else:
            text = tables.layout_text(shown).encode("utf-8", "backslashreplace").decode()
            print(text, end="", flush=True)
        _print_lines(after)

    def loading(self) -> AbstractContextManager[None]:
        """Shows on a terminal that the libraries are loading, if that takes long."""
        return self.waiting("loading torch and transformers…")

    def loading_model(self) -> AbstractContextManager[None]:
        """The same for the weights of a model."""
        return self.waiting("loading the model…")

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
