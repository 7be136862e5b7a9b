"""The page of `llmkit report`: one self-contained HTML file on one or several runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from llmkit.reporting import evaluation_summary, merge_summary, tables
from llmkit.reporting.format import clock, figure_text, short, without_folders
from llmkit.reporting.page import circumstances, data_facts, mistakes, quality
from llmkit.reporting.page.comparability import check_comparable
from llmkit.reporting.page.comparison_table import comparison_section
from llmkit.reporting.page.curves import run_curve
from llmkit.reporting.page.domain_table import domain_section
from llmkit.reporting.page.heatmap import expert_maps
from llmkit.reporting.page.run_comparison import RunComparison
from llmkit.reporting.run_record import RunRecord
from llmkit.storage import atomic, outputs

MAX_SAMPLED_STEPS = 3

_KINDS = {
    "causal": "A causal language model",
    "masked": "A masked language model",
    "completion": "A model that responds",
    "span_corruption": "An encoder-decoder language model",
    "sequence_to_sequence": "An encoder-decoder model",
    "preference": "A model tuned on preferences",
    "token_classification": "A tagger of words",
    "question_answering": "A model that answers questions from contexts",
    "single_label_classification": "A text classifier",
    "multi_label_classification": "A text classifier with several labels per row",
    "regression": "A regression on texts",
}


class Evaluation(NamedTuple):
    """A result that `evaluate` has written."""

    name: str
    """The name of its file."""
    result: Mapping[str, Any]


def report_page(
    runs: Sequence[RunRecord], evaluations: Mapping[str, Sequence[Evaluation]] | None = None
) -> str:
    """The page on these runs; of several, a table and curves that compare them come first.

    `evaluations` are results of `evaluate`, by the name of the run whose model they measured. The
    page needs no network and no other file, and escapes all that comes from data. Raises UsageError
    for runs that cannot be compared.
    """
    several = len(runs) > 1
    check_comparable(runs)
    environment = page_environment()
    anchors = [f"run-{number}" for number, _ in enumerate(runs, 1)]
    return environment.get_template("report.html").render(
        title=f"{len(runs)} runs compared" if several else runs[0].name,
        generator=outputs.REPORT,
        level=3 if several else 2,
        runs=[
            _run(run, anchor, (evaluations or {}).get(run.name, []))
            for run, anchor in zip(runs, anchors, strict=True)
        ],
        comparison=comparison_section(RunComparison(runs), anchors) if several else None,
    )


def page_environment() -> Environment:
    """The templates of the pages, which escape all that comes from data."""
    environment = Environment(
        loader=PackageLoader("llmkit.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure_text
    environment.filters["folderless"] = without_folders
    environment.filters["breakable"] = _breakable
    return environment


def write_page(
    runs: Sequence[RunRecord],
    path: Path,
    evaluations: Mapping[str, Sequence[Evaluation]] | None = None,
) -> None:
    """Writes the page on these runs, whole or not at all; raises WriteError."""
    atomic.replace_text(path, report_page(runs, evaluations))


def _run(run: RunRecord, anchor: str, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    return {
        "anchor": anchor,
        "name": run.name,
        "sentence": _sentence(run),
        "quality": quality.quality_in_words(run),
        "warnings": [*_unfinished(run), *run.facts.get("warnings", [])],
        "figures": list(quality.figure_tables(run)),
        "curve": run_curve(run),
        "confusions": list(mistakes.confusions(run)),
        "worst": mistakes.worst_mistakes(run),
        "samples": list(_samples(run)),
        "domains": domain_section(run),
        "maps": expert_maps(run.result),
        "evaluations": [_evaluation(*each) for each in evaluations],
        "data_tables": data_facts.data_tables(run),
        "data_lines": list(data_facts.data_lines(run)) if run.metrics else [],
        "speed": list(circumstances.speed_lines(run)) if run.metrics else [],
        "notes": run.facts.get("notes", []),
        "choices": circumstances.choices(run),
        "repeat": circumstances.repeating_command(run),
        "use": circumstances.using_command(run),
        "surroundings": list(circumstances.provenance(run)),
    }


def _breakable(name: str) -> Markup:
    """A name that may be broken after its separators."""
    return Markup(re.sub("([_/.:-])", r"\1<wbr>", str(escape(name))))


def _sentence(run: RunRecord) -> str:
    """What was trained, on what, for how long."""
    model, train, data = (run.config.get(name) or {} for name in ("model", "train", "data"))
    if run.command == "merge":
        return merge_summary.merge_sentence({**run.facts, **run.result})
    kinds = (_KINDS.get(str(key)) for key in (train.get("objective"), data.get("problem_type")))
    kind = next(filter(None, kinds), "A model")
    base, size = model.get("name_or_path"), run.result.get("parameters")
    begun = (
        f"that began as {data_facts.file_names(base)}"
        if base
        else f"trained from random weights ({model.get('architecture')})"
    )
    mixture = list(data.get("mixture") or {})
    text = data_facts.file_names(data.get("train_files") or [])
    on = f"the domains {', '.join(mixture)}" if mixture else text
    if domain := data.get("expert"):
        on = f"the domain {domain}"
    seconds = run.result.get("seconds")
    parts = [
        f"{kind}{f' of {short(size)} parameters' if size else ''}, {begun}",
        *([f"trained on {on}"] if on else []),
        f"{run.last_step:,} steps{f' in {clock(seconds)}' if seconds else ''}",
    ]
    return ": ".join([", ".join(parts[:-1]), parts[-1]]) + "."


def _unfinished(run: RunRecord) -> Iterator[str]:
    if not run.is_finished and run.command == "merge":
        yield "This merge is unfinished. The command that began it completes it."
    elif not run.is_finished:
        plan = run.facts.get("plan") or [[0, None]]
        total = plan[-1][1]
        of = f" of {total:,}" if total else ""
        yield (
            f"This run is unfinished: its figures go up to step {run.last_step:,}{of}. "
            "The command that began it resumes it."
        )


def _samples(run: RunRecord) -> Iterator[dict[str, Any]]:
    """The samples of the first and the last validations."""
    found = [r for r in run.metrics if r.get("samples")]
    chosen = found[-1:] if len(found) == 1 else [*found[:1], *found[1:][1 - MAX_SAMPLED_STEPS :]]
    for record in chosen:
        # Older runs kept only the text.
        some = [each if isinstance(each, Mapping) else {"": each} for each in record["samples"]]
        yield {"step": f"{record['step']:,}", "samples": some}


def _evaluation(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """A result of `evaluate` on the model of the run, as a terminal shows it, and its experts as
    maps."""
    rest = {key: value for key, value in result.items() if key not in ("experts", "routing")}
    arranged = evaluation_summary.arrange_evaluation(rest)
    found = [_plain(title, rows) for title, rows in arranged.tables.items()]
    lines = [line for line in arranged.closing if line != evaluation_summary.MORE]
    maps = expert_maps(result)
    return {"name": name, "lines": arranged.lines, "tables": found, "closing": lines, "maps": maps}


def _plain(title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A table of plain values."""
    columns = tables.plain_columns(rows)
    return {
        "caption": title,
        "columns": list(columns),
        "numeric": [key for key, is_number in columns.items() if is_number],
        "rows": [[tables.shown_value(row.get(key)) for key in columns] for row in rows],
    }
