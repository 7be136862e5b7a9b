"""The faults of all configurations of a sweep, and the errors of its runs, as one error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llmkit.cli.sweep.plan import PlannedRun
from llmkit.errors import ConfigError, Interrupted, LlmkitError, Stopped, listed
from llmkit.reporting.format import many

_MAX_NAMES = 3
"""Names of runs that one line lists."""


class SweepFaults:
    """The faults of configurations, each with the names of those that have it."""

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self.runs = runs
        self.found: list[LlmkitError] = []
        self.lines: dict[str, list[str]] = {}

    @contextmanager
    def collected(self, run: PlannedRun) -> Iterator[None]:
        """Catches the error of a configuration; a signal to stop is raised."""
        try:
            yield
        except (Interrupted, Stopped):
            raise
        except LlmkitError as fault:
            self.found.append(fault)
            for line in run.faults.lines() or [_in_a_line(fault)]:
                self.lines.setdefault(line, []).append(run.name)

    def check(self) -> None:
        """Raises an error that all configurations have in common unchanged, or else one error that
        lists all, with the configurations that each concerns."""
        if not self.found:
            return
        if len(self.found) == len(self.runs) and len(set(map(str, self.found))) == 1:
            raise self.found[0]
        kinds = {type(fault) for fault in self.found}
        raise (kinds.pop() if len(kinds) == 1 else ConfigError)(
            f"{len(self.found)} of {len(self.runs)} configurations cannot run; none was started",
            where=listed([f"{self._who(names)}: {line}" for line, names in self.lines.items()]),
            next="correct or remove these values, then run the same command again",
        )

    def _who(self, names: Sequence[str]) -> str:
        return "all configurations" if len(names) == len(self.runs) else some(names)


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    left = len(names) - _MAX_NAMES
    return "; ".join(names[:_MAX_NAMES]) + (f" and {left} more" if left > 0 else "")


def _in_a_line(fault: LlmkitError) -> str:
    """What is wrong, where, and what to do, in one line."""
    what = " ".join(f"{fault.what}{f' ({fault.where})' if fault.where else ''}".split())
    return f"{what}; {fault.next}" if fault.next else what


def failed_runs(figures: dict[str, Any], faults: Sequence[tuple[str, LlmkitError]]) -> LlmkitError:
    """The error of a sweep in which runs failed: its class is that of the first, and it holds all
    runs."""
    total, finished = len(figures["runs"]), _named(figures, "finished")
    fault = type(faults[0][1])(
        f"{len(faults)} of {total} runs failed",
        where=listed([f"{name}: {_in_a_line(each)}" for name, each in faults]),
        kept=f"{many(len(finished), 'finished run')}, in {figures['sweep_dir']}",
        next="correct the cause, then run the same command again: finished runs are not repeated",
    )
    fault.found = figures
    return fault


def stopped_sweep(figures: dict[str, Any], fault: LlmkitError) -> LlmkitError:
    """The error of a sweep that a signal stopped: what is done and what remains."""
    parts = {
        "finished": "finished",
        "interrupted": "to resume",
        "failed": "failed",
        "not started": "not started",
    }
    named = [(text, _named(figures, status)) for status, text in parts.items()]
    lines = [f"{len(names)} {text}: {some(names)}" for text, names in named if names]
    again = type(fault)(
        fault.what,
        where=figures["sweep_dir"],
        kept=listed(lines),
        next="run the same command again to continue",
    )
    again.found = figures
    return again


def _named(figures: dict[str, Any], status: str) -> list[str]:
    return [run["name"] for run in figures["runs"] if run["status"] == status]
