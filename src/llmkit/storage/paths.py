"""File names from users: which are paths, and which file a typo meant."""

from __future__ import annotations

import difflib
import os
from pathlib import Path


def looks_like_path(name: str) -> bool:
    """Whether a name must be a path rather than a model or data set on the hub.

    OWNER/NAME is a path if the current directory holds OWNER, and always under `runs`, the default
    place of run directories.
    """
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        return True
    first, slash, _ = name.partition("/")
    return Path(name).exists() or bool(slash and (first == "runs" or Path(first).exists()))


def near(path: Path) -> list[Path]:
    """Existing paths that a missing path may have meant, the most likely first.

    Every part may be misspelled; the search ends before a part that nothing resembles.
    """
    candidates = [Path(path.anchor)]
    for part in path.parts[bool(path.anchor) :]:
        found = [each for folder in candidates for each in _named(folder, part)][:3]
        if not found:
            break
        candidates = found
    return [each for each in candidates if each not in (path, *path.parents)]


def _named(folder: Path, name: str) -> list[Path]:
    """The entry of a folder with this name, or those with similar names."""
    if os.path.lexists(folder / name):
        return [folder / name]
    try:
        there = os.listdir(folder)  # noqa: PTH208 (a folder may have very many files)
    except OSError:
        return []
    return [folder / found for found in difflib.get_close_matches(name, there)]
