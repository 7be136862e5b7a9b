"""The files that an evaluation writes: whole or not at all, and never over someone else's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmkit.errors import WriteError
from llmkit.reporting import tables
from llmkit.storage import atomic, outputs


def check(paths: Iterable[str | None]) -> None:
    """Raises WriteError for a file that cannot be written, or that no evaluation wrote."""
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
    """Where the picture of a result goes."""
    return result.with_name(f"{result.name}.confusion.png")


def write_result(path: Path, figures: Mapping[str, Any]) -> None:
    """Writes a result as JSON, or for any other suffix as people read it."""
    if path.suffix == ".json":
        text = json.dumps(figures, ensure_ascii=False, indent=1) + "\n"
    else:
        text = tables.as_text(figures)
    write_text(path, text)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines."""
    lines = (
        json.dumps({"command": "evaluate", **row}, ensure_ascii=False, default=str) for row in rows
    )
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_text(path: Path, text: str) -> None:
    """Writes a file, whole or not at all, in a directory that may be new; raises WriteError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.cannot_write(error, path) from error
    atomic.replace_text(path, text)
