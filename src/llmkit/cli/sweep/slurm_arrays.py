"""A shell script that submits the runs of a plan to Slurm, as one array or several in a row."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from llmkit.cli.sweep.plan import PlannedRun, SweepPlan
from llmkit.storage import numbered

_SECONDS = 120
"""Time before the end of a job's time limit at which it is asked to save."""

_HEAD = """\
#!/bin/bash
# Submits {count} to Slurm: `bash SCRIPT`, with any options of sbatch, such as
# `--gpus-per-node=1 --time=8:00:00`. With `--ntasks=N`, N processes share each run.
# Submit it again to resume what was stopped or lost; finished runs are not repeated.
# {next}
set -eu
cd {directory}
mkdir -p {logs}
"""

_ARRAY = """
array{level}=$(sbatch --parsable --job-name={name} --array=0-{last} --requeue{dependency} \\
    --signal=B:USR1@{seconds} --output={logs}/slurm-%A_%a.log "$@" <<'END'
#!/bin/bash
case $SLURM_ARRAY_TASK_ID in
{cases}
esac
requeue=
trap 'requeue=1; kill -USR1 "$!"' USR1
srun "$@" &
wait "$!"
code=$?
while kill -0 "$!" 2> /dev/null; do  # a signal has interrupted the wait
    wait "$!"
    code=$?
done
if [ -n "$requeue" ] && [ "$code" -eq 75 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
END
)
echo "array ${{array{level}}}: {runs}"
"""


def array_script(plan: SweepPlan) -> str:
    """The script of a plan: one array after another, each of the runs whose needs the earlier ones
    make.

    Slurm's warning before the time limit reaches llmkit, which saves and ends with 75; only then a
    task is put into the queue again. An array whose needs have failed is cancelled.
    """
    logs = shlex.quote(str(plan.directory))
    last = plan.runs[-1]
    then = (
        "Once all are finished, the command without --slurm compares them, and names what failed."
    )
    script = _HEAD.format(
        count=f"{len(plan.runs)} runs" if len(plan.runs) > 1 else "a run",
        next=f"The last run needs all others: {last.name}." if last.needs else then,
        directory=shlex.quote(str(Path.cwd())),
        logs=logs,
    )
    for level, runs in enumerate(_levels(plan.runs)):
        script += _ARRAY.format(
            level=level,
            name=shlex.quote(numbered.safe(plan.directory.name) or "llmkit"),
            last=len(runs) - 1,
            dependency=f" --kill-on-invalid-dep=yes --dependency=afterok:$array{level - 1}"
            if level
            else "",
            seconds=_SECONDS,
            logs=logs,
            cases="\n".join(
                f"{number}) set -- {shlex.join(['llmkit', *run.words])} ;;"
                for number, run in enumerate(runs)
            ),
            runs=f"{len(runs)} runs" if len(runs) > 1 else shlex.quote(runs[0].name),
        )
    return script


def _levels(runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """The runs that need none, those that need only these, and so on."""
    levels: list[list[PlannedRun]] = []
    depth = dict[str, int]()
    for run in runs:  # each comes after those that it needs
        depth[run.name] = 1 + max((depth[name] for name in run.needs), default=-1)
        if depth[run.name] == len(levels):
            levels.append([])
        levels[depth[run.name]].append(run)
    return levels
