"""What the shell completes: keys of a command, run directories, and files where neither fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer

RUNS = 200
"""Run directories that are offered at most."""


def complete_key(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """`KEY=` with its meaning, for the keys that apply to the command of the context."""
    from llmkit.config import jobs, keys

    wanted = set(jobs.jobs_of(str(ctx.info_name)))
    return [
        (f"{key.name}=", key.meaning)
        for key in keys.all_keys().values()
        if key.name.startswith(incomplete) and key.jobs & wanted
    ]


def complete_run(incomplete: str) -> list[str]:
    """The run directories at or below the given path, newest first."""
    base = Path(incomplete).expanduser()
    folder = base if incomplete.endswith("/") or base.is_dir() else base.parent
    found = sorted(_runs(folder), key=lambda run: -run.stat().st_mtime)
    return [name for run in found[:RUNS] if (name := str(run)).startswith(incomplete)]


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    """The jobs of `llmkit init` with what they make."""
    from llmkit.config.starters import STARTERS

    found = ((name, starter.about) for name, starter in STARTERS.items())
    return [job for job in found if job[0].startswith(incomplete)]


def _runs(folder: Path) -> Iterator[Path]:
    """The runs in a directory, and in the `runs` directory that it holds."""
    try:
        for pattern in ("*/run.json", "runs/*/run.json"):
            yield from (record.parent for record in folder.glob(pattern))
    except OSError:
        return
