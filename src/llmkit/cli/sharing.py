"""How commands share work that is divided into units: by options, as a Slurm array, or on Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from llmkit.cli.ray_cluster import RayCluster
from llmkit.distributed import launcher
from llmkit.errors import UsageError
from llmkit.reporting.console import Console
from llmkit.storage.units import Workers

_ARRAY = "SLURM_ARRAY_TASK_"
_PAUSE = 1.0
"""Seconds between looks at the jobs of a cluster."""


def worker_share(
    processes: int | None, worker: int | None, count: int | None, ray: str | None
) -> Workers:
    """The share of this command: `--worker I --of N`, else the task of a Slurm array, else all.

    Raises UsageError for numbers that fit no share.
    """
    _check_switches(processes, worker, count, ray)
    number, count = (worker or 0, count) if count is not None else _of_array()
    if not (count >= 1 and 0 <= number < count):
        raise UsageError(
            f"there is no worker {number} of {count}",
            where="--worker, --of",
            next="workers are numbered from 0 to N - 1",
        )
    return Workers(number, count, processes or len(os.sched_getaffinity(0)))


def _check_switches(
    processes: int | None, worker: int | None, count: int | None, ray: str | None
) -> None:
    if launcher.n_processes() > 1:
        raise UsageError(
            "this command starts its processes itself",
            where="environment: WORLD_SIZE",
            next="run it without a launcher; machines share its work with `--worker I --of N`",
        )
    if processes is not None and processes < 1:
        raise UsageError(
            f"`--workers {processes}` should be int >= 1", next="remove it to use all cores"
        )
    if ray is not None and (worker is not None or count is None):
        raise UsageError(
            "`--ray` needs `--of N` alone", next="name the number of jobs with `--of N`"
        )
    if ray is None and (worker is None) != (count is None):
        given, missing = ("--of", "--worker I") if worker is None else ("--worker", "--of N")
        raise UsageError(
            f"`{given}` needs `{missing}`", next="workers are numbered from 0 to N - 1"
        )


def _of_array() -> tuple[int, int]:
    """The number of this task in its Slurm array, from 0, and the number of tasks; one of one where
    there is no array."""
    names = ("ID", "MIN", "STEP", "COUNT")
    given = {name: os.environ.get(f"{_ARRAY}{name}") for name in names}
    if given["ID"] is None or given["COUNT"] is None:
        return 0, 1
    try:
        task, first, step, count = (int(given[name] or name == "STEP") for name in names)
    except ValueError:
        raise UsageError(
            f"the environment of the Slurm array is damaged: {given}",
            where=f"environment: {_ARRAY}ID, {_ARRAY}MIN, {_ARRAY}STEP, {_ARRAY}COUNT",
            next="name the share with `--worker I --of N`",
        ) from None
    number, rest = divmod(task - first, max(1, step))
    if rest or number >= count:
        raise UsageError(
            f"task {task} of the Slurm array has no number among {count} tasks",
            where=f"environment: {_ARRAY}ID",
            next="use an array without gaps, such as --array=0-7, or name the share with "
            "`--worker I --of N`",
        )
    return number, count


def run_on_ray(address: str, line: Sequence[str], count: int, console: Console) -> None:
    """Runs the workers of a command as jobs of a Ray cluster, and waits for them.

    Each job is this command line with `--worker I --of N`. Raises the error of a job that fails,
    and stops the others.
    """
    cluster = RayCluster(address, console)
    running = [cluster.submit(words_of_worker(line, number, count)) for number in range(count)]
    try:
        with console.watch("jobs", count) as advance:
            while running:
                time.sleep(_PAUSE)
                for job in list(running):
                    ended = cluster.result_of(job)
                    if ended is not None:
                        running.remove(job)
                    if isinstance(ended, str):
                        running.append(ended)
                    elif ended is not None and ended.fault is not None:
                        raise ended.fault
                    advance(ended is not None and not isinstance(ended, str))
    finally:
        for job in running:
            cluster.stop(job)


def words_of_worker(line: Sequence[str], number: int, count: int) -> list[str]:
    """The command line of one worker of several."""
    words, rest = list[str](), iter(line)
    for word in rest:
        if word in ("--ray", "--of"):
            next(rest, None)
        elif not word.startswith(("--ray=", "--of=", "--json")):
            words.append(word)
    return [*words, "--worker", str(number), "--of", str(count), "--json"]
