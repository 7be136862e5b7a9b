"""The reference of keys: `llmkit keys`, the tables in the documentation and the JSON schema."""

from __future__ import annotations

import difflib
import json
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from llmkit.config import jobs, keys, other_tools
from llmkit.config.keys import Key
from llmkit.config.schema import Config
from llmkit.config.yaml12 import dump
from llmkit.errors import UsageError

WIDEST = 100
"""Longer lines are hard to read."""


def list_keys(words: Sequence[str], scope: str | None, as_json: bool) -> str:
    """The keys whose name or meaning contains all words and that apply to a command or task.

    Raises UsageError if there are none, and for an unknown command or task.
    """
    found = [key for key in _of_scope(scope) if all(_matches(key, word) for word in words)]
    if as_json:
        return json.dumps({"keys": [_record(key) for key in found]}, ensure_ascii=False)
    if not found:
        raise UsageError(
            f"no key matches {' '.join(words)}",
            next=_nearest(words) or "`llmkit keys` lists all keys",
        )
    width = min(WIDEST, shutil.get_terminal_size().columns)
    return "\n".join(_paragraph(key, width) for key in found)


def _of_scope(scope: str | None) -> list[Key]:
    every = list(keys.all_keys().values())
    if scope is None:
        return every
    try:
        wanted = set(jobs.jobs_of(_full(scope)))
    except ValueError as fault:
        names = [name for command in jobs.TASKS for name in {command, *jobs.jobs_of(command)}]
        raise UsageError(
            str(fault), where="--for", next=f"write one of {', '.join(sorted(names))}"
        ) from None
    return [key for key in every if key.jobs & wanted]


def _full(scope: str) -> str:
    """A task with its command: `completion` is `finetune/completion`."""
    known = (job for job in sorted(jobs.EVERY_JOB) if job.partition("/")[2] == scope)
    return next(known, scope)


def _matches(key: Key, word: str) -> bool:
    plain = word.lower().lstrip("-").replace("-", "_")
    meant = other_tools.RENAMED.get(plain.rpartition(".")[2])
    text = f"{key.name} {key.meaning}".lower()
    return plain in text or word.lower() in text or key.name == meant


def _nearest(words: Sequence[str]) -> str:
    names = {name for key in keys.all_keys().values() for name in (key.name, key.path[-1])}
    near = [difflib.get_close_matches(word, names, n=1) for word in words]
    return " or ".join(f"did you mean `llmkit keys {each[0]}`?" for each in near if each)


def _record(key: Key) -> dict[str, object]:
    return {
        "key": key.name,
        "type": key.takes.replace("`", ""),
        "default": key.default,
        "for": jobs.shortest_names(key.jobs),
        "meaning": key.meaning,
    }


def _paragraph(key: Key, width: int) -> str:
    """One key: its name and default, then what it takes, what it means and where it jobs."""
    lines = (key.takes.replace("`", ""), key.meaning, f"For {key.scope}.")
    indented = (
        textwrap.fill(line, width, initial_indent="    ", subsequent_indent="    ")
        for line in lines
    )
    return "\n".join((f"{key.name} = {dump(key.default)}", *indented))


def key_table() -> str:
    """A Markdown table of all keys with type, default, scope and meaning."""
    rows = [
        f"| `{key.name}` | {key.takes} | `{dump(key.default)}` | {key.scope} | {key.meaning} |"
        for key in keys.all_keys().values()
    ]
    return (
        "\n".join(["| Key | Type | Default | For | Meaning |", "|---|---|---|---|---|", *rows])
        + "\n"
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a config file, for editors; each description ends with the key's scope."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(),
        "title": "llmkit config",
    }
    for key in keys.all_keys().values():
        node = schema
        for part in key.path:
            node = _below(schema, node, part)
        node["description"] = f"{key.meaning} For {key.scope}."
    return schema


def _below(schema: dict[str, Any], node: dict[str, Any], part: str) -> dict[str, Any]:
    """The schema of a key's next path part, inside the schema of the parts before it."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    found: dict[str, Any] = node["additionalProperties" if part == keys.KEY_NAME else "properties"]
    return found if part == keys.KEY_NAME else found[part]
