"""Every key as text for a terminal or as JSON: what `llmkit keys` prints."""

from __future__ import annotations

import difflib
import json
import shutil
import textwrap
from collections.abc import Sequence

from llmkit.config import applies, foreign, keys
from llmkit.config.keys import Key
from llmkit.config.scalars import dump
from llmkit.errors import UsageError

WIDEST = 100
"""Columns beyond which text is hard to read."""


def listed(words: Sequence[str], scope: str | None, as_json: bool) -> str:
    """The keys that have all of the words in their name or meaning and apply to a command or task.

    Raises UsageError where there are none, and for a command or task that there is not.
    """
    found = [key for key in _of_scope(scope) if all(_matches(key, word) for word in words)]
    if as_json:
        return json.dumps({"keys": [_record(key) for key in found]}, ensure_ascii=False)
    if not found:
        raise UsageError(
            f"no key matches {' '.join(words)}",
            next=_nearest(words) or "`llmkit keys` lists them all",
        )
    width = min(WIDEST, shutil.get_terminal_size().columns)
    return "\n".join(_paragraph(key, width) for key in found)


def _of_scope(scope: str | None) -> list[Key]:
    every = list(keys.keys().values())
    if scope is None:
        return every
    try:
        jobs = set(applies.jobs_of(_full(scope)))
    except ValueError as fault:
        names = [name for command in applies.TASKS for name in {command, *applies.jobs_of(command)}]
        raise UsageError(
            str(fault), where="--for", next=f"write one of {', '.join(sorted(names))}"
        ) from None
    return [key for key in every if key.jobs & jobs]


def _full(scope: str) -> str:
    """A task with its command, where it was given alone: `completion`."""
    known = (job for job in sorted(applies.EVERY_JOB) if job.partition("/")[2] == scope)
    return next(known, scope)


def _matches(key: Key, word: str) -> bool:
    plain = word.lower().lstrip("-").replace("-", "_")
    meant = foreign.RENAMED.get(plain.rpartition(".")[2])
    said = f"{key.name} {key.meaning}".lower()
    return plain in said or word.lower() in said or key.name == meant


def _nearest(words: Sequence[str]) -> str:
    names = {name for key in keys.keys().values() for name in (key.name, key.path[-1])}
    near = [difflib.get_close_matches(word, names, n=1) for word in words]
    return " or ".join(f"did you mean `llmkit keys {each[0]}`?" for each in near if each)


def _record(key: Key) -> dict[str, object]:
    return {
        "key": key.name,
        "type": key.takes.replace("`", ""),
        "default": key.default,
        "for": applies.named(key.jobs),
        "meaning": key.meaning,
    }


def _paragraph(key: Key, width: int) -> str:
    """One key: its name and default, then what it takes, what it means and where it applies."""
    lines = (key.takes.replace("`", ""), key.meaning, f"For {key.scope}.")
    indented = (
        textwrap.fill(line, width, initial_indent="    ", subsequent_indent="    ")
        for line in lines
    )
    return "\n".join((f"{key.name} = {dump(key.default)}", *indented))
