"""`llmkit clean`: raw text or rows -> cleaned, deduplicated text with a report."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmkit.config.schema import Config
from llmkit.data.cleaning.passes import explain, output, sampling
from llmkit.data.cleaning.passes.pipeline import CleaningPlan, Passes, plan_cleaning
from llmkit.data.readers.files import Sources
from llmkit.errors import UsageError
from llmkit.reporting.console import Console
from llmkit.reporting.format import many
from llmkit.storage import outputs
from llmkit.storage.units import ALONE, Units, Workers

COMMAND = "clean"
_EXAMPLE = "llmkit clean --text corpus --output cleaned"
_HELD_OUT = ("data.test_files", "data.validation_files")


def run(
    config: Config, sources: Sources, console: Console, workers: Workers = ALONE
) -> dict[str, Any]:
    """Cleans the text and writes it with a trace and a report, or explains a single document."""
    settings = config.clean
    if settings.output is None and settings.explain is None:
        raise UsageError(
            "clean.output is not given",
            where="clean.output",
            next=f"name a new directory: `{_EXAMPLE}`, or measure a sample with `--dry-run`",
        )
    plan = _plan(config, sources, console)
    if settings.explain is not None:
        return _explained(plan, settings.explain, console)
    directory = Path(str(settings.output))
    began = time.monotonic()
    account = output.recorded_account(directory, plan)
    if account is None:
        with Units(directory / outputs.UNITS) as units:
            cleaned = Passes(plan, units, workers, console.watch).carry_out()
            account = output.publish(plan, cleaned, directory)
            units.discard()
    else:
        console.say(f"{directory} holds the cleaned text; nothing is left to do")
    for warning in account["warnings"]:
        console.warn(warning)
    return {
        "command": COMMAND,
        **{name: account[name] for name in ("before", "after")},
        **{
            name: {
                stage: {what: n for what, n in counts.items() if what != "examples"}
                for stage, counts in account[name].items()
            }
            for name in ("removed", "edits")
        },
        "clusters": account["clusters"]["number"],
        "output": str(directory),
        "seconds": round(time.monotonic() - began, 1),
    }


def check(
    config: Config, sources: Sources, console: Console, workers: Workers = ALONE
) -> dict[str, Any]:
    """Passes a sample through the stages, and forecasts what the whole will take."""
    plan = _plan(config, sources, console, hashed=False)
    with console.watch("measuring a sample", 0):
        return {"command": COMMAND, **sampling.sample_cleaning(plan)}


def _plan(config: Config, sources: Sources, console: Console, hashed: bool = True) -> CleaningPlan:
    settings = config.clean
    if settings.stop_words or settings.lowercase:
        console.warn(
            "text without stop words or case is for models that count words; a language model "
            "learns far worse from it (3.35 against 2.30 bits per byte without stop words)"
        )
    held_out = [source for key in _HELD_OUT for source in sources.of(key)]
    training = sources.of("data.train_files")
    plan = plan_cleaning(held_out, training, config.data, settings, console.watch, hashed)
    more = f", compared with {many(len(held_out), 'held-out file')}" if held_out else ""
    console.say(f"cleaning {many(len(training), 'file')}{more}")
    return plan


def _explained(plan: CleaningPlan, place: str, console: Console) -> dict[str, Any]:
    output_directory = plan.settings.output
    directory = None if output_directory is None else Path(output_directory)
    boilerplate = set[int]()
    if plan.settings.boilerplate is not None:
        with TemporaryDirectory() as temporary, Units(Path(temporary, "units")) as units:
            boilerplate = Passes(plan, units, ALONE, console.watch).frequent_lines()
    return {"command": COMMAND, **explain.explain_document(plan, place, boilerplate, directory)}
