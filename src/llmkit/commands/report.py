"""`llmkit report`: one or more runs -> one self-contained HTML page."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit.errors import WriteError
from llmkit.reporting.run_page import write_page
from llmkit.reporting.run_record import PAGE, read_run
from llmkit.storage import atomic, outputs


def report_runs(directories: Sequence[str], output: str | None, opens: bool) -> dict[str, Any]:
    """Writes the page on these runs and returns its path; `opens` shows it in a browser.

    Raises InputNotFound, DataError or UsageError for runs that are missing, damaged or not
    comparable, and WriteError for a file that cannot be written or was not written by a report.
    """
    paths = [Path(directory).expanduser() for directory in directories]
    runs = [read_run(path) for path in paths]
    default = paths[0] / PAGE if len(paths) == 1 else Path(PAGE)
    page = Path(output).expanduser() if output else default
    _check_replaceable(page)
    write_page(runs, page)
    if opens:
        webbrowser.open(page.resolve().as_uri())
    return {
        "command": "report",
        "runs": [str(path) for path in paths],
        "unfinished": [run.name for run in runs if not run.is_finished],
        "page": str(page),
    }


def _check_replaceable(page: Path) -> None:
    atomic.check_writable(page)
    try:
        is_ours = not page.exists() or (page.is_file() and outputs.holds_report(page))
    except OSError as error:
        raise atomic.cannot_write(error, page) from error
    if not is_ours:
        raise WriteError(
            f"{page} exists, and no report wrote it",
            where=str(page),
            next="name another file with --output, or remove this one",
        )
