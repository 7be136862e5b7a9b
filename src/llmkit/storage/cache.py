"""Directories that are built once, and used again only if they are undamaged."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmkit.errors import LlmkitError, WriteError
from llmkit.progress import Say, Watch
from llmkit.storage import atomic
from llmkit.storage.lock import try_lock

_ADVICE = "make room, or set LLMKIT_CACHE to a directory with room that can be written"


@dataclass(frozen=True)
class Entry:
    """A directory of the cache that is what it was when it was built."""

    path: Path
    info: dict[str, Any]
    """What its builder noted."""
    fingerprint: str
    """The sha256 of what it holds."""
    reused: bool


def directory() -> Path:
    """The cache: $LLMKIT_CACHE, else $XDG_CACHE_HOME/llmkit, else ~/.cache/llmkit.

    Raises WriteError where there is no home directory, or its name is not UTF-8.
    """
    own = os.environ.get("LLMKIT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        path = (Path(own) if own else Path(base, "llmkit")).expanduser()
        str(path).encode()
    except (RuntimeError, UnicodeError) as fault:
        raise WriteError(
            f"there is no place for the cache: {fault}",
            where="LLMKIT_CACHE",
            next="set LLMKIT_CACHE to a directory that can be written",
        ) from fault
    return path


def key(*parts: object) -> str:
    """A short name that stands for the parts."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


def open_or_build(
    name: str, build: Callable[[Path], dict[str, Any]], watch: Watch, say: Say
) -> Entry:
    """The entry of this name; `build` fills its directory, and returns notes, where there is none.

    What the notes hold under `derived` follows from the rest: it is no part of the fingerprint, so
    that entries written without it are the same. It joins the notes when the entry is opened.

    Processes that want the same entry at once build it once. An entry that is damaged is set aside
    and built again. Raises WriteError where the cache cannot be written.
    """
    path = directory() / name
    entry, _ = _open(path)
    if entry:
        return entry
    with _locked(path, watch):
        entry, damage = _open(path)
        if entry:
            return entry
        info: dict[str, Any] = {}
        with writing(path):
            if damage:
                aside = atomic.set_aside(path)
                say(f"cache: {name} is damaged ({damage}); set aside as {aside.name}, built again")
            atomic.clean(path.parent, f"{name}-")
            atomic.commit(path, lambda partial: info.update(build(partial)), {"info": info})
    entry, damage = _open(path)
    if not entry:
        raise WriteError(f"{path} does not read back as it was written: {damage}", where=str(path))
    return replace(entry, reused=False)


def _open(path: Path) -> tuple[Entry | None, str]:
    """The entry if it is undamaged; else None, and the damage of what stands there."""
    if not path.is_dir():
        return None, ""
    try:
        manifest = _older_manifest(path)
        if manifest is None:
            manifest = atomic.verify(path)
        else:
            atomic.verify_files(path, manifest["files"])
        files, info = manifest["files"], dict(manifest["info"])
        derived = info.pop("derived", {})
        return Entry(path, info | derived, _fingerprint(files, info), reused=True), ""
    except (atomic.DamagedError, KeyError) as damage:
        return None, str(damage)
    except LlmkitError as fault:
        return None, fault.what


def _older_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of an entry that an earlier llmkit built, if it is one and undamaged."""
    try:
        older = json.loads((path / atomic.MANIFEST).read_text(encoding="utf-8"))
        files = {
            name: {"size": file["bytes"], "sha256": file["sha256"]}
            for name, file in older["files"].items()
        }
        whole = older["fingerprint"] == _fingerprint(files, older["info"])
        return {"info": older["info"], "files": files} if whole else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _fingerprint(files: Mapping[str, Mapping[str, Any]], info: Mapping[str, Any]) -> str:
    held = {n: {"bytes": file["size"], "sha256": file["sha256"]} for n, file in files.items()}
    return key(held, info)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises WriteError, with the variable that moves the cache, where it cannot be written."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"cannot write to the cache: {error.strerror or error}",
            where=str(error.filename or path),
            kept="nothing half-written is left",
            next=_ADVICE,
        ) from error
    except WriteError as fault:
        fault.next = _ADVICE
        raise


@contextmanager
def _locked(path: Path, watch: Watch) -> Iterator[None]:
    """Holds the lock of an entry; waits while another process has it."""
    with writing(path):
        atomic.make_directory(path.parent)
        file = path.with_name(f"{path.name}.lock").open("a")
    with file:
        if not try_lock(file):
            with watch("waiting for another process that prepares the same data", 0) as advance:
                while not try_lock(file):
                    time.sleep(0.1)
                    advance(0)
        yield
