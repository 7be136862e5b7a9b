"""Directories that are built once, whole or not at all, and trusted only after a look inside."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import WriteError
from llmkit.progress import Say, Watch

_MANIFEST = "manifest.json"


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
    and built anew. Raises WriteError where the cache cannot be written.
    """
    path = directory() / name
    entry, _ = _open(path)
    if entry:
        return entry
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f"{name}.lock"), watch):
        entry, damage = _open(path)
        if entry:
            return entry
        with writing(path):
            if damage:
                aside = path.with_name(f".corrupt-{name}-{time.time_ns()}")
                path.rename(aside)
                say(f"cache: {name} is damaged ({damage}); set aside as {aside.name}, built anew")
            _build(path, build)
    entry, damage = _open(path)
    if not entry:
        raise WriteError(f"{path} does not read back as it was written: {damage}", where=str(path))
    return Entry(entry.path, entry.info, entry.fingerprint, reused=False)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into WriteError."""
    try:
        yield
    except OSError as fault:
        raise WriteError(
            f"cannot write to the cache: {fault.strerror or fault}",
            where=str(fault.filename or path),
            kept="nothing half written was left behind",
            next="make room, or set LLMKIT_CACHE to a directory with room that can be written",
        ) from fault


def _open(path: Path) -> tuple[Entry | None, str]:
    """The entry if it is whole; else None, and what is wrong with what stands there."""
    if not path.is_dir():
        return None, ""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        for name, told in files.items():
            if (path / name).stat().st_size != told["bytes"]:
                return None, f"{name} has not {told['bytes']} bytes"
            if _digest(path / name) != told["sha256"]:
                return None, f"{name} has another sha256"
        derived = manifest.get("derived", {})
        if manifest["fingerprint"] != key(files, manifest["info"]):
            return None, f"{_MANIFEST} was changed"
        if manifest.get("derived_fingerprint", key({})) != key(derived):
            return None, f"{_MANIFEST} was changed"
        return Entry(path, manifest["info"] | derived, manifest["fingerprint"], reused=True), ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        return None, f"{type(fault).__name__}: {fault}"


def _build(path: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    # The lock is held: what another build of this entry left behind is nobody's.
    for leftover in path.parent.glob(f".tmp-{path.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    temporary.mkdir()
    try:
        info = build(temporary)
        derived = info.pop("derived", {})
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": _digest(file)}
            for file in sorted(temporary.iterdir())
        }
        manifest = {
            "fingerprint": key(files, info),
            "info": info,
            "files": files,
            "derived": derived,
            "derived_fingerprint": key(derived),
        }
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        for file in (*temporary.iterdir(), temporary):
            _sync(file)
        temporary.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(path: Path, watch: Watch) -> Iterator[None]:
    """Hold the lock of this file; the system frees it when the process ends, however it ends."""
    with writing(path):
        file = path.open("a")
    with file:
        if not _try_lock(file.fileno()):
            with watch("waiting for another process that prepares the same data", 0) as advance:
                while not _try_lock(file.fileno()):
                    time.sleep(0.1)
                    advance(0)
        yield


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
