"""The plan of a sweep: each configuration with its config, its directory and its command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmkit.cli.sweep.grid import Configuration, configurations
from llmkit.config import yaml12
from llmkit.config.checks import Faults
from llmkit.config.given import GivenOption
from llmkit.config.load import read_config
from llmkit.config.schema import Config
from llmkit.errors import UsageError, WriteError
from llmkit.storage import atomic, numbered, outputs
from llmkit.storage.outputs import SWEEP
from llmkit.training import run_directory, run_identity
from llmkit.training.run_identity import RUNS_DIRECTORY


@dataclass(frozen=True)
class CommandLine:
    """A command line by its parts; the common switches are those that each run gets too."""

    command: str
    config: Path | None
    overrides: Sequence[str]
    options: Sequence[GivenOption]
    switches: Sequence[str] = ()
    typed: Sequence[str] = ()
    """The whole, as it was typed."""

    def words(self, overrides: Sequence[str], directory: Path | None) -> list[str]:
        """The words after `llmkit`, with these overrides and this output directory."""
        waiting = [each for each in self.options if each.key != "output_dir"]
        waiting.sort(key=lambda option: option.after)
        words = [self.command, *([str(self.config)] if self.config else [])]
        for number, override in enumerate(overrides):
            while waiting and waiting[0].after <= number:
                words += _option_words(waiting.pop(0))
            words.append(override)
        words += [word for option in waiting for word in _option_words(option)]
        place = [] if directory is None else _words("--output-dir", str(directory))
        return [*words, *place, *self.switches]


def _option_words(option: GivenOption) -> Iterator[str]:
    values = [option.value] if isinstance(option.value, str | int) else option.value
    domain = option.key.removeprefix("merge.experts.")
    named = f"{domain}=" if domain != option.key else ""  # --expert DOMAIN=RUN
    for value in values:
        yield from _words(option.flag, f"{named}{value}")


def _words(flag: str, value: str) -> list[str]:
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


@dataclass(frozen=True)
class PlannedRun:
    """A configuration with its config, and the faults of that."""

    configuration: Configuration
    config: Config
    faults: Faults
    line: CommandLine
    """The command line that it is one of."""
    needs: Sequence[str] = ()
    """The names of runs that must be finished before it starts."""

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.configuration.name

    @property
    def directory(self) -> Path:
        """The directory of the run."""
        return Path(str(self.config.output_dir))

    @property
    def result(self) -> dict[str, Any] | None:
        """Its figures, if it is finished."""
        return run_directory.finished_result(self.config, self.line.command)

    @property
    def words(self) -> list[str]:
        """Its command line, without `llmkit`."""
        return self.line.words(self.configuration.overrides, self.directory)

    def placed(self, sweep: Path) -> PlannedRun:
        """The run in the directory of its sweep."""
        return replace(self, config=self.config.changed(output_dir=str(sweep / self.name)))

    def described(self, status: str, **more: Any) -> dict[str, Any]:
        """The run as `--json` has it."""
        values = self.configuration.values.items()
        keys = {name: yaml12.parse_scalar(text) for name, text in values}
        directory = str(self.directory)
        return {"name": self.name, "run_dir": directory, "keys": keys, "status": status, **more}


@dataclass(frozen=True)
class SweepPlan:
    """All runs of a sweep."""

    line: CommandLine
    runs: Sequence[PlannedRun]
    directory: Path
    prefix: str
    """The default name without its number; empty where the directory is given."""
    switch: str
    """The switch of the command line that plans several runs."""
    request: Mapping[str, Any]
    """What the runs are asked to do, wherever they are."""
    placed: Callable[[Path], Sequence[PlannedRun]]
    """The runs in another directory."""
    is_own: bool = True
    """Whether the directory is for these runs alone."""

    def all_words(self) -> list[str]:
        """The command line of the whole plan in this directory, without `llmkit`."""
        place = self.directory if self.is_own else None
        return [*self.line.words(self.line.overrides, place), self.switch]

    def claimed(self) -> SweepPlan:
        """The same plan in a directory that exists and records the request of the sweep."""
        if not self.is_own:
            return self
        facts = {
            "command": self.line.command,
            "arguments": list(self.line.typed),
            numbered.REQUEST: self.request,
        }
        if self.prefix:
            again = self.runs[0].config.resume == "never"
            directory = numbered.claim(RUNS_DIRECTORY, self.prefix, SWEEP, facts, again)
            return replace(self, runs=self.placed(directory), directory=directory)
        try:
            numbered.write_request(self.directory, SWEEP, facts)
        except OSError as error:
            raise atomic.cannot_write(error, self.directory) from error
        return self

    def check_place(self) -> None:
        """Raises WriteError if the directory of the sweep is a run, or holds a file of another
        origin under a name that the sweep writes."""
        if not self.is_own:
            return
        if (self.directory / outputs.RUN).exists():
            what = "holds a run, not a sweep"
        elif (self.directory / SWEEP).exists() and not outputs.is_sweep(self.directory):
            what = f"holds a file {SWEEP} that is not of a sweep"
        elif self.directory.is_dir():
            outputs.check_replaceable(self.directory / outputs.PAGE, outputs.holds_report, "report")
            return
        else:
            return
        raise WriteError(
            what, where=f"output_dir={self.directory}", next="choose another output_dir"
        )

    def check_different(self) -> None:
        """Raises UsageError for two runs with the same config."""
        first: dict[Any, str] = {}
        for run in self.runs:
            values = run.config.changed(output_dir=None).model_dump()
            same = first.setdefault(_hashable(values), run.name)
            if same != run.name:
                raise UsageError(
                    f"{same} and {run.name} are the same run",
                    where=", ".join(run.configuration.values),
                    next="keep one of equal values, and one of an option and its key",
                )


def plan_sweep(line: CommandLine) -> SweepPlan:
    """Plans a sweep: the configurations of a command line and their directories. Creates nothing.

    The faults of each config are collected in its PlannedRun. Raises UsageError if the values are
    not a grid: see `configurations`.
    """
    runs = []
    for each in configurations(line.overrides):
        faults = Faults(line.command)
        read = read_config(line.command, line.config, each.overrides, line.options, faults)
        runs.append(PlannedRun(each, read.config, faults, line))
    request = _request(line.command, runs)

    def placed(directory: Path) -> list[PlannedRun]:
        return [run.placed(directory) for run in runs]

    if (given := runs[0].config.output_dir) is not None:
        directory = Path(given).expanduser()
        return SweepPlan(line, placed(directory), directory, "", "--sweep", request, placed)
    names = {run_identity.default_prefix(run.config, line.command) for run in runs}
    prefix = f"{names.pop() if len(names) == 1 else line.command}-sweep"
    found = None
    if runs[0].config.resume != "never":
        found = numbered.find_numbered(RUNS_DIRECTORY, prefix, SWEEP, request)
    directory = found or numbered.next_free(RUNS_DIRECTORY, prefix)
    return SweepPlan(line, placed(directory), directory, prefix, "--sweep", request, placed)


def _hashable(value: Any) -> Any:
    """A value of a config in a form that is a key of a dict, and equal for equal values."""
    if isinstance(value, dict):
        return frozenset((name, _hashable(inner)) for name, inner in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _request(command: str, runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """The request of a sweep: those of its runs, in any order."""
    asked = [run_identity.request_of(run.config, command) for run in runs]
    return {"command": command, "runs": sorted(asked, key=json.dumps)}
