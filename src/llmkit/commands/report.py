"""`llmkit report`: one or more runs, or cleaned text -> one self-contained HTML page."""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llmkit.errors import DataError, InputNotFound, UsageError
from llmkit.reporting.page.cleaning_page import cleaning_page
from llmkit.reporting.page.run_page import Evaluation, report_page
from llmkit.reporting.run_record import RunRecord, named_apart, read_run
from llmkit.storage import atomic, outputs


def report_runs(places: Sequence[str], output: str | None, opens: bool) -> dict[str, Any]:
    """Writes the page on these runs, or on one directory of `clean`, and returns its path; `opens`
    shows it in a browser. A JSON result of `evaluate` among them is shown with the run whose model
    it measured.

    Raises InputNotFound, DataError or UsageError for runs that are missing, damaged or not
    comparable, and WriteError for a file that cannot be written or was not written by a report.
    """
    found = [Path(place).expanduser() for place in places]
    if len(found) == 1 and outputs.is_cleaned(found[0]):
        return _report_cleaning(found[0], output, opens)
    results = [
        path for path in found if path.suffix == ".json" and _holds(path, outputs.holds_evaluation)
    ]
    paths = list(_runs([path for path in found if path not in results]))
    if not paths:
        raise InputNotFound(
            "there is no run",
            where=", ".join(places),
            next="name a run directory: the --output-dir of pretrain or finetune",
        )
    runs = named_apart([read_run(path) for path in paths])
    evaluations = _evaluations(results, runs)
    default = runs[0].directory / outputs.PAGE if len(runs) == 1 else Path(outputs.PAGE)
    page = Path(output).expanduser() if output else default
    return {
        "command": "report",
        "runs": [str(run.directory) for run in runs],
        "unfinished": [run.name for run in runs if not run.is_finished],
        "page": _written(page, report_page(runs, evaluations), opens),
    }


def _report_cleaning(directory: Path, output: str | None, opens: bool) -> dict[str, Any]:
    page = Path(output).expanduser() if output else directory / outputs.PAGE
    written = _written(page, cleaning_page(directory), opens)
    return {"command": "report", "cleaned": str(directory), "page": written}


def _written(page: Path, text: str, opens: bool) -> str:
    """The path of the page, once it is written, whole or not at all."""
    outputs.check_replaceable(page, outputs.holds_report, "report")
    atomic.replace_text(page, text)
    if opens:
        webbrowser.open(page.resolve().as_uri())
    return str(page)


def _evaluations(paths: Sequence[Path], runs: Sequence[RunRecord]) -> dict[str, list[Evaluation]]:
    """The results of `evaluate` in these files, by the name of the run that they measured.

    Raises DataError for a damaged file, UsageError for a result of another model.
    """
    found: dict[str, list[Evaluation]] = {}
    for path in paths:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            models = [Path(each["model"]) for each in result.get("models", [result])]
        except (ValueError, LookupError, TypeError, OSError) as error:
            raise DataError(
                f"cannot read a result of `evaluate`: {error}",
                where=str(path),
                next="evaluate again, or leave the file away",
            ) from error
        measured = [run for run in runs if any(_is_model_of(model, run) for model in models)]
        if not measured:
            names = ", ".join(map(str, models))
            raise UsageError(
                f"this is an evaluation of {names}, which is none of the runs",
                where=str(path),
                next="name the run of that model too, or leave the file away",
            )
        for run in measured:
            found.setdefault(run.name, []).append(Evaluation(path.name, result))
    return found


def _is_model_of(model: Path, run: RunRecord) -> bool:
    """Whether a model is the run, its final model or a checkpoint; where the result was written in
    another directory, by name."""
    directory = run.directory.resolve()
    if directory in (model.resolve(), *model.resolve().parents[:2]):
        return True
    return not model.exists() and directory.name in (model.name, model.parent.name)


def _runs(paths: Sequence[Path]) -> Iterator[Path]:
    """The runs among the paths. A sweep stands for its runs; its other files, which `DIR/*` names
    too, are skipped."""
    for path in paths:
        if outputs.is_sweep(path):
            yield from sorted(record.parent for record in path.glob(f"*/{outputs.RUN}"))
        elif not (path.is_file() and _is_of_sweep(path)):
            yield path


def _is_of_sweep(path: Path) -> bool:
    return path.name == outputs.SWEEP or _holds(path, outputs.holds_report)


def _holds(path: Path, what: Callable[[Path], bool]) -> bool:
    """Whether a file that can be read holds this."""
    try:
        return path.is_file() and what(path)
    except OSError:
        return False
