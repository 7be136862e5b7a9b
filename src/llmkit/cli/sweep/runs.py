"""Carries out a sweep, or the runs that make a merge: checks all, then runs one after another, or
as jobs of a Ray cluster.

Each run is a separate process with the command line that would start it alone. So its numbers are
those of the single command, it leaves no memory behind, and no fault of one stops the others.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from llmkit.cli import faults
from llmkit.cli.ray_cluster import RayCluster
from llmkit.cli.request import Request
from llmkit.cli.sweep.checks import SweepFaults, failed_runs, stopped_sweep
from llmkit.cli.sweep.experts import plan_experts
from llmkit.cli.sweep.plan import CommandLine, PlannedRun, SweepPlan, plan_sweep
from llmkit.cli.sweep.slurm_arrays import array_script
from llmkit.distributed import launcher, signals
from llmkit.distributed.child import ChildResult, run_command_line
from llmkit.distributed.signals import StopSignal
from llmkit.errors import LlmkitError, UsageError
from llmkit.reporting.console import Console
from llmkit.storage import outputs
from llmkit.training import run_directory

_PAUSE = 0.5
"""Seconds between two looks at the jobs of a cluster."""

_FINISHED, _FAILED, _INTERRUPTED, _WAITING = "finished", "failed", "interrupted", "not started"


def run_sweep(line: CommandLine, console: Console, ray: str | None = None) -> dict[str, Any]:
    """Runs what is unfinished, one after another or on the Ray cluster at an address, and returns
    all runs and how they compare.

    Raises what is wrong with any configuration before the first run starts. The error of failed
    runs, and of a sweep that was stopped, holds all runs too.
    """
    plan = _checked(line)
    cluster = None if ray is None else RayCluster(ray, console)
    with signals.stop_signal() as stop:
        _check_with_libraries(plan, stop, console)
        plan = plan.claimed()
        with run_directory.held(plan.directory) if plan.is_own else nullcontext():
            return _carried_out(plan, stop, console, cluster)


def check_sweep(line: CommandLine, console: Console) -> dict[str, Any]:
    """Checks everything that unfinished runs need, without weights or writing, and lists all."""
    plan = _checked(line)
    return {**_facts(plan), "dry_run": True, "runs": _checked_with_libraries(plan, console)}


def print_sweep(
    line: CommandLine, console: Console, *, slurm: bool, dry_run: bool
) -> dict[str, Any] | None:
    """Prints the command of each run in a line of a shell, or a script that submits them to Slurm;
    with `--json` returns that. `dry_run` makes all checks, and does not create the directory that
    the commands name."""
    plan = _checked(line)
    if dry_run:
        _checked_with_libraries(plan, console)
    else:
        plan = plan.claimed()
    commands = [shlex.join(["llmkit", *run.words]) for run in plan.runs]
    if broken := next((each for each in commands if "\n" in each), None):
        raise UsageError(
            "a command with a line break does not fit into a line",
            where=broken,
            next="write the value as quoted YAML, with \\n for the break: KEY='\"a\\nb\"'",
        )
    script = array_script(plan)
    if console.json:
        return {**_facts(plan), **({"script": script} if slurm else {"commands": commands})}
    text = script if slurm else "".join(f"{command}\n" for command in commands)
    with faults.of_stdout():
        # Bytes, since file names need not be UTF-8.
        sys.stdout.buffer.write(os.fsencode(text))
        sys.stdout.flush()
    return None


def _facts(plan: SweepPlan) -> dict[str, Any]:
    keys = list(dict.fromkeys(key for run in plan.runs for key in run.configuration.values))
    return {"command": plan.line.command, "sweep_dir": str(plan.directory), "keys": keys}


def _checked(line: CommandLine) -> SweepPlan:
    """The plan, after all checks that need no libraries."""
    switch = "--train" if line.command == "merge" else "--sweep"
    if launcher.n_processes() > 1:
        raise UsageError(
            "each run is a process that this command starts",
            where="environment: WORLD_SIZE",
            next=f"run it without a launcher; or print its commands with `{switch} --print`, and "
            "launch each of them",
        )
    plan = plan_experts(line) if switch == "--train" else plan_sweep(line)
    found = SweepFaults(plan.runs)
    for run in plan.runs:
        with found.collected(run):
            _check_light(plan, run)
    found.check()
    plan.check_different()
    plan.check_place()
    return plan


def _checked_with_libraries(plan: SweepPlan, console: Console) -> list[dict[str, Any]]:
    """All runs, with the report of a dry run for those that are unfinished."""
    found, runs = SweepFaults(plan.runs), []
    with console.watch("configurations checked", len(plan.runs)) as advance:
        for run in plan.runs:
            report = {}
            if (status := _status(run)) != _FINISHED:
                with found.collected(run):
                    report = _report_of(plan, run)
            runs.append(run.described(status, **report))
            advance(1)
    found.check()
    return runs


def _check_with_libraries(plan: SweepPlan, stop: StopSignal, console: Console) -> None:
    """The same in another process: its memory, and a GPU that only one process may use, are free
    for the runs."""
    if all(_status(run) == _FINISHED for run in plan.runs):
        return
    console.say(f"{len(plan.runs)} runs in {plan.directory}: checking all of them")
    with console.waiting("checking the configurations…"):
        words = [*plan.all_words(), "--dry-run", "--json"]
        ended = run_command_line(words, stop, shown=False)
    if ended.fault is not None:
        raise (
            ended.fault if not ended.was_stopped else stopped_sweep(_figures(plan, []), ended.fault)
        )


def _request(plan: SweepPlan, run: PlannedRun) -> Request:
    allowed = "--allow-code" in plan.line.switches
    return Request(run.line.command, [], run.config, run.faults, None, True, allowed)


def _check_light(plan: SweepPlan, run: PlannedRun) -> None:
    """Makes all checks of a run that need no libraries, and no run that is not finished."""
    if _waits(plan, run):
        run.faults.check()
        run_directory.check_run_directory(run.config, run.line.command)
    else:
        _request(plan, run).checked(_Silent())


def _report_of(plan: SweepPlan, run: PlannedRun) -> dict[str, Any]:
    """The report of a dry run; of a merge that needs other runs first, only its settings are
    checked."""
    if not _waits(plan, run):
        return {"report": _request(plan, run).carry_out(_Silent())}
    if run.line.command == "merge":
        from llmkit.commands.merge import check_ahead

        check_ahead(plan.runs[0].config, run.config)
    return {}


def _waits(plan: SweepPlan, run: PlannedRun) -> bool:
    """Whether a run needs others that are not finished."""
    return any(each.name in run.needs and _status(each) != _FINISHED for each in plan.runs)


def _status(run: PlannedRun) -> str:
    return _status_with(run, run.result)


def _status_with(run: PlannedRun, result: dict[str, Any] | None) -> str:
    """The status of a run with this result, or without one."""
    if result is not None:
        return _FINISHED
    return _INTERRUPTED if (run.directory / outputs.RUN).exists() else _WAITING


def _carried_out(
    plan: SweepPlan, stop: StopSignal, console: Console, cluster: RayCluster | None
) -> dict[str, Any]:
    found = Progress(plan, stop, console)
    if cluster is None:
        _run_one_by_one(found)
    else:
        _run_on_ray(found, cluster)
    figures, failed = found.figures(), found.failed
    if plan.runs[-1].needs:
        figures = {**_last_result(plan, found.ran, console), **figures}
    else:
        figures = _compared(figures, console)
    if not failed:
        return figures
    if not console.json:
        with faults.of_stdout():
            console.result(figures)
    raise failed_runs(figures, failed)


@dataclass
class Progress:
    """The progress of the runs of a plan."""

    plan: SweepPlan
    stop: StopSignal
    console: Console
    failed: list[tuple[str, LlmkitError]] = field(default_factory=list)
    ran: set[str] = field(default_factory=set)
    """The names of the runs that were started."""

    def begins(self, run: PlannedRun) -> bool:
        """Announces a run, and returns whether to start it now; raises after a stop signal."""
        if _status(run) == _FINISHED and not self.ran & {*run.needs}:
            self.say(run, "finished before")
        elif _waits(self.plan, run):
            self.say(run, "not started, since it needs a run that failed")
        else:
            if self.stop.received:
                self.end_by(signals.stopped_by(self.stop.received))
            self.say(run)
            self.ran.add(run.name)
            return True
        return False

    def ended(self, run: PlannedRun, result: ChildResult) -> None:
        """Records the end of a run; raises where a signal has stopped it."""
        if (fault := result.fault) is None:
            _say_result(result.printed, self.console)
        elif result.was_stopped:
            self.end_by(fault)
        else:
            self.failed.append((run.name, fault))

    def say(self, run: PlannedRun, how: str = "") -> None:
        """Prints a line on a run."""
        number = self.plan.runs.index(run) + 1
        heading = f"run {number} of {len(self.plan.runs)}: {run.name}"
        self.console.say(f"{heading}: {how}" if how else heading)

    def end_by(self, fault: LlmkitError) -> NoReturn:
        """Raises the error of a sweep that a signal stopped."""
        raise stopped_sweep(self.figures(), fault)

    def figures(self) -> dict[str, Any]:
        """All runs as they are now."""
        return _figures(self.plan, self.failed)


def _run_one_by_one(found: Progress) -> None:
    for run in found.plan.runs:
        if found.begins(run):
            found.ended(run, run_command_line([*run.words, "--json"], found.stop, shown=True))


def _run_on_ray(found: Progress, cluster: RayCluster) -> None:
    """Runs all at once that need no others, as far as the cluster has room, then those that need
    them. A stop signal stops the jobs too, and waits for what they save."""
    waiting, jobs = list(found.plan.runs), dict[str, PlannedRun]()
    while (waiting or jobs) and not found.stop.received:
        open_runs = {run.name for run in (*waiting, *jobs.values())}
        for run in [each for each in waiting if not open_runs & {*each.needs}]:
            waiting.remove(run)
            if found.begins(run):
                jobs[cluster.submit([*run.words, "--json"])] = run
        time.sleep(_PAUSE)
        for run, result in _ended_jobs(jobs, cluster):
            found.say(run, "ended")
            found.ended(run, result)
    if not found.stop.received:
        return
    for job in jobs:
        cluster.stop(job)
    while jobs:
        time.sleep(_PAUSE)
        for run, _ in _ended_jobs(jobs, cluster):
            found.say(run, "stopped")
    found.end_by(signals.stopped_by(found.stop.received))


def _ended_jobs(
    jobs: dict[str, PlannedRun], cluster: RayCluster
) -> Iterator[tuple[PlannedRun, ChildResult]]:
    """Removes the jobs that have ended; one that was lost has another name from now on."""
    for job in list(jobs):
        result = cluster.result_of(job)
        if isinstance(result, str):
            jobs[result] = jobs.pop(job)
        elif result is not None:
            yield jobs.pop(job), result


def _last_result(plan: SweepPlan, ran: set[str], console: Console) -> dict[str, Any]:
    """The figures and the warnings of the run that needs all others; empty if it is unfinished."""
    last = plan.runs[-1]
    if (result := last.result) is None:
        return {}
    warnings = run_directory.read_facts(last.directory).get("warnings", [])
    if last.name in ran:  # it has printed them
        console.warnings += warnings
    else:
        for text in warnings:
            console.warn(text)
    return result


def _figures(plan: SweepPlan, failed: Sequence[tuple[str, LlmkitError]]) -> dict[str, Any]:
    """All runs as they are now."""
    wrong = dict(failed)
    return {**_facts(plan), "runs": [_outcome(plan, run, wrong.get(run.name)) for run in plan.runs]}


def _outcome(plan: SweepPlan, run: PlannedRun, fault: LlmkitError | None) -> dict[str, Any]:
    if fault is not None:
        return run.described(_FAILED, error=fault.described())
    result = run.result
    found = {} if result is None else {"result": result}
    return run.described(_status_with(run, result), **found)


def _say_result(result: dict[str, Any], console: Console) -> None:
    """The lines of a run's summary on what it did and how good it is."""
    from llmkit.reporting import summary

    for text in summary.of_training(result) if summary.is_training(result) else ():
        if not text.startswith(" "):
            console.say(text)


def _compared(figures: dict[str, Any], console: Console) -> dict[str, Any]:
    """Adds the best run, and the page that compares the runs that have begun."""
    from llmkit.commands.report import report_runs
    from llmkit.reporting.page.run_comparison import RunComparison
    from llmkit.reporting.run_record import read_run

    begun = [Path(run["run_dir"]) for run in figures["runs"] if run["status"] != _WAITING]
    records = [read_run(each) for each in begun if (each / outputs.RUN).exists()]
    compared = RunComparison(records)
    found: dict[str, Any] = {
        "best": compared.ranked[0].name if compared.ranked else None,
        "page": None,
        "sentences": [*compared.sentences, *compared.warnings],
    }
    if records:
        page = Path(figures["sweep_dir"]) / outputs.PAGE
        try:
            report_runs([str(each.directory) for each in records], str(page), opens=False)
            found["page"] = str(page)
        except UsageError as fault:
            console.warn(f"no page was written: {fault.what}")
    return {**figures, **found}


class _Silent(Console):
    """Prints nothing: each run prints its own messages."""

    def __init__(self) -> None:
        super().__init__(json=True, quiet=True)

    def warn(self, text: str) -> None:
        """Keeps a warning."""
        self.warnings.append(text)
