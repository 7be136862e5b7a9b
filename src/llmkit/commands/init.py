"""`llmkit init`: a commented starter config for a job, with the user's own files filled in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit.config import starters
from llmkit.config.schema import DataConfig
from llmkit.data.readers import files, roles
from llmkit.errors import DataError, UsageError, WriteError
from llmkit.storage import atomic


def write_starter(
    job: str, data: Sequence[str], model: str | None, output: str | None
) -> dict[str, Any]:
    """Writes the starter config of a job and returns its path and the next commands.

    The files are opened: for tables, the columns that llmkit recognises are filled in.
    Raises UsageError for an unsuitable job or data, InputNotFound, DataError for files that
    cannot be read, and WriteError for a path that exists.
    """
    starter = starters.STARTERS[job]
    path = Path(output or f"{job}.yaml").expanduser()
    atomic.check_writable(path)
    if path.exists():
        raise WriteError(f"{path} exists", where=str(path), next="name another file with --output")
    if data and not starter.files:
        raise UsageError(
            f"a starter for {job} takes no files", next="give prompts with --prompts-file later"
        )
    text = re.sub(r"configs/[\w-]+\.yaml", str(path), starters.starter_text(job))
    values: dict[str, Any] = {"model.name_or_path": model} if model else {}
    notes: list[str] = []
    if starter.files == "data.mixture" and data:
        text = starters.fill_domains(text, _domains(data))
    elif data:
        found = files.find(data, starter.files)
        values[starter.files] = list(data) if len(data) > 1 else data[0]
        try:
            values |= _columns(job, found, data)
        except DataError as fault:
            notes.append(f"the columns are left for you to name: {fault.what}")
    atomic.replace_text(path, starters.fill_in(text, values))
    return {
        "command": "init",
        "config": str(path),
        "filled": values,
        **({"notes": notes} if notes else {}),
        "next": f"llmkit {starter.command} {path} --dry-run",
    }


def _columns(job: str, found: Sequence[files.Source], data: Sequence[str]) -> dict[str, Any]:
    """The columns that the rows of a job are read from, as far as llmkit recognises them."""
    asked = DataConfig(train_files=tuple(data))
    names: tuple[str, ...]
    if job == "classifier":
        resolved = roles.resolve_label_columns(found, asked, lambda text: None)
        names = ("text_column", "label_column")
    elif job == "completion":
        resolved = roles.resolve_chat_columns(found, asked, lambda text: None)
        names = ("prompt_column", "response_column", "messages_column")
    else:
        return {}
    columns = {f"data.{name}": getattr(resolved, name) for name in names}
    return {key: value for key, value in columns.items() if value is not None}


def _domains(data: Sequence[str]) -> dict[str, str]:
    """A name for the domain of each file or directory, by its own name."""
    domains: dict[str, str] = {}
    for entry in data:
        files.find([entry], "data.mixture")
        name = re.sub(r"\W+", "_", Path(entry).stem).strip("_") or "domain"
        while name in domains:
            name += "_"
        domains[name] = entry
    return domains
