"""File names from users: tell paths from hub names, and suggest files for a misspelled path."""

from __future__ import annotations

import difflib
import os
from pathlib import Path


def looks_like_path(name: str) -> bool:
    """Whether a name must be a path rather than a model or data set on the hub.

    OWNER/NAME is a path if the current directory contains OWNER, and always if OWNER is `runs`, the
    default location of run directories.
    """
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        return True
    first, slash, _ = name.partition("/")
    return Path(name).exists() or bool(slash and (first == "runs" or Path(first).exists()))


def near(path: Path) -> list[Path]:
    """Existing paths that resemble a missing path, the most likely first.

    Every part may be misspelled; the search stops before a part that nothing resembles.
    """
    candidates = [Path(path.anchor)]
    for part in path.parts[bool(path.anchor) :]:
        found = [each for folder in candidates for each in _entries_like(folder, part)][:3]
        if not found:
            break
        candidates = found
    return [each for each in candidates if each not in (path, *path.parents)]


def _entries_like(folder: Path, name: str) -> list[Path]:
    """The entry of a folder with this name, or else those with similar names."""
    if os.path.lexists(folder / name):
        return [folder / name]
    try:
        names = os.listdir(folder)  # noqa: PTH208 (a folder may have very many files)
    except OSError:
        return []
    return [folder / found for found in difflib.get_close_matches(name, names)]
