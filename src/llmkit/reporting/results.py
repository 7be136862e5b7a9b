"""The files that an evaluation writes: atomically, and never over files that it did not write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llmkit.reporting import evaluation_summary, tables
from llmkit.reporting.format import markdown_text
from llmkit.storage import atomic, outputs
from llmkit.storage.strict_json import json_text

MARKDOWN = (".md", ".markdown")
"""Suffixes of Markdown files."""


def check_output_files(paths: Iterable[str | None]) -> None:
    """Raises WriteError for a path that is not writable, or a file that no evaluation wrote."""
    for path in [Path(path) for path in paths if path is not None]:
        outputs.check_replaceable(path, outputs.holds_evaluation, "evaluate")


def picture_beside(result: Path) -> Path:
    """The path of the picture of a result."""
    return result.with_name(f"{result.name}.confusion.png")


def write_result(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes a result as JSON or Markdown, or with any other suffix as plain text."""
    if path.suffix == ".json":
        text = json_text(figures, indent=1) + "\n"
    elif path.suffix in MARKDOWN:
        text = result_markdown(figures, picture_beside(path))
    else:
        text = tables.layout_text(tables.layout(figures))
    write_text(path, text)


def result_markdown(figures: Mapping[str, Any], picture: Path) -> str:
    """A result as Markdown: the tables that a terminal shows, warnings, and the confusion matrix if
    its picture exists."""
    # Imported here: paths are checked before anything that is slow to import.
    from jinja2 import Environment, PackageLoader

    warnings = figures.get("warnings", ())
    rest = {key: value for key, value in figures.items() if key != "warnings"}
    lines: Sequence[str] = ()
    closing: Sequence[str] = ()
    if evaluation_summary.is_evaluation(rest):
        lines, found, closing = evaluation_summary.arrange_evaluation(rest)
    else:
        facts, others = tables.layout(rest)
        found = {"figures": [{"": name, "value": value} for name, value in facts], **dict(others)}
    environment = Environment(
        loader=PackageLoader("llmkit.reporting"), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["text"] = markdown_text
    return environment.get_template("evaluation.md").render(
        generator=outputs.EVALUATION,
        title="Evaluation" + (f" of {figures['model']}" if "model" in figures else ""),
        lines=lines,
        warnings=warnings,
        picture=quote(picture.name) if _draws(figures) and picture.exists() else None,
        tables=[_markdown_table(*each) for each in found.items()],
        closing=[line for line in closing if line != evaluation_summary.MORE],
    )


def _draws(figures: Mapping[str, Any]) -> bool:
    """Whether a result has the confusion matrix that its picture shows; an earlier result may have
    left a picture."""
    first: Mapping[str, Any] = next(iter(figures.get("models") or [figures]))
    return "confusion_matrix" in first


def _markdown_table(title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = tables.plain_columns(rows)
    return {
        "title": title[:1].upper() + title[1:],
        "head": list(columns),
        "numeric": columns.values(),
        "rows": [[tables.shown_value(row.get(key)) for key in columns] for row in rows],
    }


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines."""
    lines = (json_text({"command": "evaluate", **row}) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, and makes its directory; raises WriteError."""
    try:
        atomic.make_directory(path.parent)
    except OSError as error:
        raise atomic.cannot_write(error, path) from error
    atomic.replace_text(path, text)
