"""File names from users: tell paths from hub names, and suggest files for a misspelled path."""

from __future__ import annotations

import difflib
import os
import stat
from pathlib import Path

from llmkit.errors import WriteError


def cache_directory() -> Path:
    """The cache: $LLMKIT_CACHE, else $XDG_CACHE_HOME/llmkit, else ~/.cache/llmkit.

    Raises WriteError if there is no home directory, or its name is not UTF-8.
    """
    own = os.environ.get("LLMKIT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        path = (Path(own) if own else Path(base, "llmkit")).expanduser()
        str(path).encode()
    except (RuntimeError, UnicodeError) as fault:
        raise WriteError(
            f"no usable cache directory: {fault}",
            where="LLMKIT_CACHE",
            next="set LLMKIT_CACHE to a writable directory",
        ) from fault
    return path


def is_private(path: Path) -> bool:
    """Whether a file or directory belongs to this user, who alone may write it."""
    kept = path.stat()
    return kept.st_uid == os.getuid() and not kept.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


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
