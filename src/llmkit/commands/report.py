"""`llmkit report`: one or more runs -> one self-contained HTML page."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmkit.errors import InputNotFound
from llmkit.reporting.page.run_page import write_page
from llmkit.reporting.run_record import read_run
from llmkit.storage import outputs


def report_runs(directories: Sequence[str], output: str | None, opens: bool) -> dict[str, Any]:
    """Writes the page on these runs and returns its path; `opens` shows it in a browser.

    Raises InputNotFound, DataError or UsageError for runs that are missing, damaged or not
    comparable, and WriteError for a file that cannot be written or was not written by a report.
    """
    paths = list(_runs([Path(directory).expanduser() for directory in directories]))
    if not paths:
        raise InputNotFound(
            "there is no run",
            where=", ".join(directories),
            next="name a run directory: the --output-dir of pretrain or finetune",
        )
    runs = [read_run(path) for path in paths]
    default = paths[0] / outputs.PAGE if len(paths) == 1 else Path(outputs.PAGE)
    page = Path(output).expanduser() if output else default
    outputs.check_replaceable(page, outputs.holds_report, "report")
    write_page(runs, page)
    if opens:
        webbrowser.open(page.resolve().as_uri())
    return {
        "command": "report",
        "runs": [str(path) for path in paths],
        "unfinished": [run.name for run in runs if not run.is_finished],
        "page": str(page),
    }


def _runs(paths: Sequence[Path]) -> Iterator[Path]:
    """The runs among the paths. A sweep stands for its runs; its other files, which `DIR/*` names
    too, are skipped."""
    for path in paths:
        if outputs.is_sweep(path):
            yield from sorted(record.parent for record in path.glob(f"*/{outputs.RUN}"))
        elif not (path.is_file() and _is_of_sweep(path)):
            yield path


def _is_of_sweep(path: Path) -> bool:
    try:
        return path.name == outputs.SWEEP or outputs.holds_report(path)
    except OSError:
        return False
