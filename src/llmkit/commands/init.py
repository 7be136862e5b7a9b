"""`llmkit init`: a commented starter config for a job, with the user's own files filled in."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit.config import starters
from llmkit.config.schema import DataConfig
from llmkit.data.readers import files, roles
from llmkit.data.records import questions
from llmkit.data.records.tagging import tagged
from llmkit.errors import DataError, UsageError, WriteError
from llmkit.models import directory
from llmkit.storage import atomic
from llmkit.training.run_identity import RUNS_DIRECTORY


def write_starter(
    job: str, data: Sequence[str], model: str | None, output: str | None
) -> dict[str, Any]:
    """Writes the starter config of a job and returns its path and the next commands.

    The files are opened: for tables, the columns that llmkit recognises are filled in.
    Raises UsageError for an unsuitable job or data, InputNotFound for files or a model that do not
    exist, DataError for files that cannot be read, and WriteError for a path that exists.
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
    values: dict[str, Any] = {}
    if model is not None:
        directory.locate_model(model)
        values["model.name_or_path"] = model
    text, notes, domains = starters.starter_text(job), list[str](), dict[str, str]()
    if job == "experts" and len(data) == 1:
        text, found = _with_found_domains(text, data[0])
        values |= found
        notes += [_BY_BLANK_LINES] if "data.document" in found else []
    elif starter.files == "data.mixture":
        domains = _domains(data)
        text = starters.name_experts(starters.fill_domains(text, domains), list(domains))
        notes += [] if domains else ["write your domains and their files under data.mixture"]
    elif data:
        values[starter.files] = list(data) if len(data) > 1 else data[0]
    if data:
        try:
            values |= _columns(job, data)
        except DataError as fault:
            notes.append(f"the columns are left for you to name: {fault.what}; {fault.next}")
    filled = {**values, **{f"data.mixture.{name}.files": file for name, file in domains.items()}}
    run = starter.run or f"{RUNS_DIRECTORY}/{path.stem}"
    text = starters.name_in_comments(text, str(path), run, filled)
    if starter.command in ("pretrain", "finetune"):
        values = {"output_dir": run, **values}
    atomic.replace_text(path, starters.fill_in(text, values))
    return {
        "command": "init",
        "config": str(path),
        "filled": filled,
        **({"notes": notes} if notes else {}),
        "next": _next(starter, path, filled),
    }


_BY_BLANK_LINES = "documents are separated by blank lines: change data.document if yours are not"


def _with_found_domains(text: str, entry: str) -> tuple[str, dict[str, Any]]:
    """The starter for domains that are to be found in one text, and its values."""
    values = {"data.train_files": entry, "data.domains": "auto"}
    names, sources = list(DataConfig(domains="auto").mixture), files.find([entry], "--text")
    if len(sources) < len(names) and all(source.format == "txt" for source in sources):
        values["data.document"] = "blank_line"
    return starters.name_experts(starters.without_mixture(text), names), values


def _next(starter: starters.Starter, path: Path, values: Mapping[str, Any]) -> str:
    """The command to run, with an example of what the config does not name yet."""
    has_data = any(key.startswith("data.") for key in values)
    parts = [f"llmkit {starter.command} {shlex.quote(str(path))}"]
    if starter.needs_model and "model.name_or_path" not in values:
        parts.append("--model runs/mine")
    if starter.data and not has_data:
        parts.append(starter.data)
    return " ".join([*parts, "--dry-run"])


def _columns(job: str, data: Sequence[str]) -> dict[str, Any]:
    """The columns that the rows of a job are read from, as far as llmkit recognises them."""
    asked, found = (
        DataConfig(train_files=tuple(data)),
        files.find(data, starters.STARTERS[job].files),
    )
    names: tuple[str, ...]
    tables = [source for source in found if source.format != "txt"]
    if job in ("classifier", "evaluate-labels"):
        resolved = roles.resolve_label_columns(found, asked, _say_nothing)
        names = ("text_column", "label_column")
    elif job == "tagger":
        resolved = tagged.resolve_tagged_columns(found, asked, _say_nothing)
        names = ("text_column", "label_column", "mark_column")
    elif job == "question-answering":
        resolved = questions.resolve_question_columns(found, asked, _say_nothing)
        names = ("text_column", "label_column")
    elif job == "completion":
        resolved = roles.resolve_chat_columns(found, asked, _say_nothing)
        names = ("prompt_column", "response_column", "messages_column")
    elif job in ("translation", "summarization"):
        resolved = roles.resolve_pair_columns(found, asked, _say_nothing)
        names = ("source_column", "target_column")
    elif job == "preference":
        resolved = roles.resolve_preference_columns(found, asked, _say_nothing)
        names = ("prompt_column", "chosen_column", "rejected_column")
    else:
        resolved = roles.resolve_label_columns(tables, asked, _say_nothing, labelled=False)
        names = ("text_column",)
    columns = {f"data.{name}": getattr(resolved, name) for name in names}
    return {key: value for key, value in columns.items() if value is not None}


def _say_nothing(text: str) -> None:
    """The columns are part of the result."""


def _domains(data: Sequence[str]) -> dict[str, str]:
    """A name for the domain of each file or directory, by its own name."""
    domains: dict[str, str] = {}
    for entry in data:
        name = re.sub(r"\W+", "_", Path(entry).stem).strip("_") or "domain"
        while name in domains:
            name += "_"
        domains[name] = entry
    return domains
