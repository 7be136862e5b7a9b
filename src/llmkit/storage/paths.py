"""Names that a user gave for files: which of them are paths, and which file a typo meant."""

from __future__ import annotations

import difflib
import os
from pathlib import Path


def looks_like_path(name: str) -> bool:
    """Whether a name can only be a path, and not that of a model or data set on the hub.

    OWNER/NAME is a path where something called OWNER lies in the current directory, and under
    `runs`, where our own runs stand.
    """
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        return True
    first, slash, _ = name.partition("/")
    return Path(name).exists() or bool(slash and (first == "runs" or Path(first).exists()))


def near(path: Path) -> list[Path]:
    """Existing paths that a path which does not exist may have meant, the likeliest first.

    Every part may be misspelled; where one is like nothing, the answer ends before it.
    """
    candidates = [Path(path.anchor)]
    for part in path.parts[bool(path.anchor) :]:
        found = [each for folder in candidates for each in _named(folder, part)][:3]
        if not found:
            break
        candidates = found
    return [each for each in candidates if each not in (path, *path.parents)]


def _named(folder: Path, name: str) -> list[Path]:
    """What is called so in a folder, or else almost so."""
    if os.path.lexists(folder / name):
        return [folder / name]
    try:
        there = os.listdir(folder)  # noqa: PTH208 (a folder may have very many files)
    except OSError:
        return []
    return [folder / found for found in difflib.get_close_matches(name, there)]
