"""The files that an evaluation writes: atomically, and never over files that it did not write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmkit.errors import WriteError
from llmkit.reporting import tables
from llmkit.storage import atomic, outputs


def check_output_files(paths: Iterable[str | None]) -> None:
    """Raises WriteError for a path that is not writable, or a file that no evaluation wrote."""
    for path in [Path(path) for path in paths if path is not None]:
        atomic.check_writable(path)
        try:
            is_ours = not path.exists() or (path.is_file() and outputs.holds_evaluation(path))
        except OSError as error:
            raise atomic.cannot_write(error, path) from error
        if not is_ours:
            raise WriteError(
                f"{path} exists, and no evaluation wrote it",
                where=str(path),
                next="name another file, or remove this one",
            )


def picture_beside(result: Path) -> Path:
    """The path of the picture of a result."""
    return result.with_name(f"{result.name}.confusion.png")


def write_result(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes a result as JSON, or with any other suffix as plain text."""
    if path.suffix == ".json":
        text = json.dumps(figures, ensure_ascii=False, indent=1) + "\n"
    else:
        text = tables.result_text(figures)
    write_text(path, text)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines."""
    lines = (
        json.dumps({"command": "evaluate", **row}, ensure_ascii=False, default=str) for row in rows
    )
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, and makes its directory; raises WriteError."""
    try:
        atomic.make_directory(path.parent)
    except OSError as error:
        raise atomic.cannot_write(error, path) from error
    atomic.replace_text(path, text)
