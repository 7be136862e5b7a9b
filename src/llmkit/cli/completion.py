"""What the shell completes: keys, their values, config files and run directories."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from llmkit.config.keys import Key

_MAX_RUNS = 200
"""Maximum number of run directories offered."""


def complete_key(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Sections, then keys, then `KEY=VALUE`, of the keys that apply to the command of the context;
    config files beside them where CONFIG may follow.

    Empty where nothing fits, so that the shell offers files. A shell adds a space after the only
    candidate: the only section is followed by its keys, and the only key by its values.
    """
    from llmkit.config import jobs, keys

    wanted = set(jobs.jobs_of(str(ctx.info_name)))
    applying = [key for key in keys.all_keys().values() if key.jobs & wanted]
    config, others = ctx.params.get("config"), ctx.params.get("overrides") or []
    words = [word for word in (config, *others) if word]
    if words[1:] and words[-1] == "=":  # bash makes three words of KEY=VALUE
        return list(_values(words[-2], incomplete, applying))
    name, equals, start = incomplete.partition("=")
    if equals:
        return [(f"{name}={value}", text) for value, text in _values(name, start, applying)]
    names = _names(incomplete, applying)
    files = sorted(map(str, Path().glob("*.y*ml"))) if names and not config else ()
    return [*names, *((file, "config") for file in files if file.startswith(incomplete))]


def _names(incomplete: str, applying: Iterable[Key]) -> list[tuple[str, str]]:
    found = [key for key in applying if key.name.startswith(incomplete)]
    if len(found) == 1:
        (key,) = found
        return [(f"{key.name}={value}", key.meaning) for value in _choices(key)]
    depth = incomplete.count(".") + 1
    names = {
        ".".join((*key.path[:depth], "")) if key.path[depth:] else f"{key.name}=": key.meaning
        for key in found
    }
    sections = [name for name in names if name.endswith(".")]
    if len(names) == 1 and sections != [incomplete]:
        return _names(sections[0], found)
    return [(name, "section" if name in sections else names[name]) for name in names]


def _values(name: str, start: str, applying: Iterable[Key]) -> Iterator[tuple[str, str]]:
    """The values of a key that begin with `start`; none of paths, which the shell completes."""
    key = next((key for key in applying if key.name == name), None)
    if name == "model.name_or_path":
        yield from ((run, "run") for run in complete_run(start))
    elif key is not None and not key.takes.startswith("path"):
        values = (value for value in _choices(key) if value and value.startswith(start))
        yield from ((value, key.meaning) for value in values)


def _choices(key: Key) -> Sequence[str]:
    """The values of a key; for one that accepts others too, an empty one to be filled in."""
    from llmkit.config.yaml12 import dump

    if key.takes == "bool":
        return ["true", "false"]
    named = dict.fromkeys([*map(str, key.choices), dump(key.default)])
    others = re.sub(r"`[^`]*`|\bor\b|[ ,]", "", key.takes)
    return ["", *named] if others else [*named]


def complete_word(incomplete: str) -> list[tuple[str, str]]:
    """The names of keys with their meaning."""
    from llmkit.config import keys

    found = ((key.name, key.meaning) for key in keys.all_keys().values())
    return [key for key in found if key[0].startswith(incomplete)]


def complete_scope(incomplete: str) -> list[str]:
    """The commands and tasks that keys apply to."""
    from llmkit.config import jobs

    names = dict.fromkeys(
        name for command in jobs.TASKS for name in (command, *jobs.jobs_of(command))
    )
    return [name for name in names if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """The run directories at or below the given path, newest first."""
    base = Path(incomplete).expanduser()
    folder = base if incomplete.endswith("/") or base.is_dir() else base.parent
    found = sorted(_runs(folder), key=lambda run: -run.stat().st_mtime)
    return [name for run in found[:_MAX_RUNS] if (name := str(run)).startswith(incomplete)]


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    """The jobs of `llmkit init` with what they make."""
    from llmkit.config.starters import STARTERS

    found = ((name, starter.about) for name, starter in STARTERS.items())
    return [job for job in found if job[0].startswith(incomplete)]


def _runs(folder: Path) -> Iterator[Path]:
    """The runs in a directory, and in the `runs` directory that it holds."""
    try:
        for pattern in ("*/run.json", "runs/*/run.json"):
            yield from (record.parent for record in folder.glob(pattern))
    except OSError:
        return
