"""The files that an evaluation writes: whole or not at all, and never over someone else's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmkit import durable
from llmkit.errors import WriteError
from llmkit.reporting import tables

MARK = "llmkit evaluate"
"""Stands in every page that is written here."""

_OURS = re.compile(rb'^\{\s*"command": "evaluate"|^command: evaluate|content="llmkit evaluate"')
_HEAD = 4096


def check(paths: Iterable[str | None]) -> None:
    """Makes the directories of the files, before any work is done for them.

    Raises WriteError for a file that exists and that no evaluation wrote, and for a directory that
    cannot be made.
    """
    for path in [Path(path) for path in paths if path is not None]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                with path.open("rb") as file:
                    ours = bool(_OURS.search(file.read(_HEAD)))
            else:
                ours = not path.exists()
        except OSError as error:
            raise durable.cannot_write(error, path) from error
        if not ours:
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
    durable.replace_text(path, text)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines."""
    lines = (
        json.dumps({"command": "evaluate", **row}, ensure_ascii=False, default=str) for row in rows
    )
    durable.replace_text(path, "".join(f"{line}\n" for line in lines))
