"""A cache of directories: each is built once and reused only if undamaged."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmkit.errors import LlmkitError, WriteError
from llmkit.progress import Say, Watch
from llmkit.storage import atomic
from llmkit.storage.atomic import try_lock
from llmkit.storage.paths import cache_directory

_ADVICE = "free some space, or set LLMKIT_CACHE to a writable directory with enough space"


@dataclass(frozen=True)
class Entry:
    """A verified directory of the cache."""

    path: Path
    info: dict[str, Any]
    """Metadata from its builder."""
    fingerprint: str
    """The sha256 of its contents."""
    reused: bool


def key(*parts: object) -> str:
    """A short hash of the parts, to name an entry."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


def entry_path(name: str) -> Path:
    """Where the entry of a name is, if it is built."""
    return cache_directory() / name


def open_or_build(
    name: str, build: Callable[[Path], dict[str, Any]], watch: Watch, say: Say
) -> Entry:
    """Opens the entry of this name; if there is none, `build` fills its directory and returns its
    metadata.

    Metadata under `derived` follows from the rest: it is not part of the fingerprint, so that
    entries written without it are the same. Opening an entry merges it into `info`.

    Processes that need the same entry at once build it once. A damaged entry is quarantined and
    rebuilt. Raises WriteError if the cache cannot be written.
    """
    path = entry_path(name)
    with watch("verifying prepared data", 0):
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
                moved = atomic.quarantine(path).name
                say(f"cache: {name} is damaged ({damage}); quarantined as {moved}, rebuilding")
            atomic.clean(path.parent, f"{name}-")
            atomic.commit(path, lambda partial: info.update(build(partial)), {"info": info})
    entry, damage = _open(path)
    if not entry:
        raise WriteError(f"{path} was damaged as it was written: {damage}", where=str(path))
    return replace(entry, reused=False)


def _open(path: Path) -> tuple[Entry | None, str]:
    """The entry if it is undamaged; else None and a description of the damage, if any."""
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
        return Entry(path, info | derived, fingerprint_of(files, info), reused=True), ""
    except (atomic.DamagedError, KeyError) as damage:
        return None, str(damage)
    except LlmkitError as fault:
        return None, fault.what


def _older_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of an undamaged entry that an earlier llmkit built; None for any other."""
    try:
        older = json.loads((path / atomic.MANIFEST).read_text(encoding="utf-8"))
        files = {
            name: {"size": file["bytes"], "sha256": file["sha256"]}
            for name, file in older["files"].items()
        }
        whole = older["fingerprint"] == fingerprint_of(files, older["info"])
        return {"info": older["info"], "files": files} if whole else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def fingerprint_of(files: Mapping[str, Mapping[str, Any]], info: Mapping[str, Any]) -> str:
    """The fingerprint of an entry with these files, of which `size` and `sha256` are known."""
    held = {n: {"bytes": file["size"], "sha256": file["sha256"]} for n, file in files.items()}
    return key(held, info)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns failed writes into a WriteError that names the variable for the cache's location."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"cannot write to the cache: {error.strerror or error}",
            where=str(error.filename or path),
            kept="no incomplete file is left",
            next=_ADVICE,
        ) from error
    except WriteError as fault:
        fault.next = _ADVICE
        raise


@contextmanager
def _locked(path: Path, watch: Watch) -> Iterator[None]:
    """Holds the lock of an entry, after waiting for any other process that holds it."""
    with writing(path):
        atomic.make_directory(path.parent)
        file = path.with_name(f"{path.name}.lock").open("a")
    with file:
        if not try_lock(file):
            with watch("waiting for another process that is preparing the same data", 0) as advance:
                while not try_lock(file):
                    time.sleep(0.1)
                    advance(0)
        yield
