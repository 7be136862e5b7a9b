"""Write directories atomically, with a manifest that reveals damage.

A directory is filled under a temporary name beside its target. Every file is hashed and flushed to
disk, a manifest with the hashes is written last, and one rename makes the directory visible. A
crash at any instant leaves the old state or the new one. The manifest detects damage; it is not a
cryptographic signature.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llmkit.errors import NoValidCheckpoint, Unsafe, WriteError


def try_lock(file: IO[Any]) -> bool:
    """Tries to lock an open file for this process; False if another process holds the lock.

    The system releases the lock when the file is closed or the process ends, however it ends.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_named(file: IO[Any], path: Path) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


_FORMAT = 1
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 1 << 24
"""Maximum number of characters read from a manifest; ours have a few hundred."""
_SAFE_NAME = re.compile(r"\w[\w.-]*")


class DamagedError(Exception):
    """A directory does not match its manifest; the text names the file and the difference."""


FileFacts = dict[str, Any]
"""The `sha256` and `size` of a file."""


class Draft:
    """A directory under a temporary name, until it is published under its own or discarded.
    `make` is separate, so that a signal just after it still leads to `discard`."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.directory = target.with_name(f".tmp-{target.name}-{os.getpid()}")

    def make(self) -> None:
        """Creates the empty directory beside its target."""
        make_directory(self.target.parent)
        _clean_after(self.target)
        self.directory.mkdir()

    def publish(self, facts: Mapping[str, Any], hashed: Mapping[str, FileFacts]) -> None:
        """Hashes and flushes the files that are not `hashed`, writes the manifest, and makes the
        directory visible in place of an earlier target."""
        inside = sorted(self.directory.rglob("*"))
        names = {path.relative_to(self.directory).as_posix(): path for path in inside}
        written = {name: path for name, path in names.items() if path.is_file()}
        files = {name: hashed.get(name) or _flush(path) for name, path in written.items()}
        for folder in filter(Path.is_dir, inside):
            flush_directory(folder)
        _write_manifest(self.directory / MANIFEST, {"format": _FORMAT, **facts, "files": files})
        flush_directory(self.directory)
        _publish(self.directory, self.target)

    def discard(self) -> None:
        """Removes the directory if it was not published."""
        shutil.rmtree(self.directory, ignore_errors=True)


def commit(
    target: Path,
    fill: Callable[[Path], Mapping[str, FileFacts] | None],
    facts: Mapping[str, Any],
) -> None:
    """Creates `target` with the files that `fill` writes into the directory passed to it.

    `fill` may return the facts of files that it has hashed and flushed itself. `facts` are stored
    in the manifest, read after `fill` returns. An earlier `target` is removed only when the new
    directory is complete. Raises WriteError when writing fails, and then leaves nothing behind.
    """
    with as_write_error(target):
        draft = Draft(target)
        try:
            draft.make()
            draft.publish(facts, fill(draft.directory) or {})
        finally:
            draft.discard()


@contextmanager
def as_write_error(target: Path) -> Iterator[None]:
    """A context in which a failed write raises WriteError."""
    try:
        yield
    except Exception as error:
        raise cannot_write(error, target) from error


def verify(directory: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Any]:
    """Returns the manifest of a directory after verifying its wanted files.

    Raises DamagedError, Unsafe for a manifest that names files outside its directory, and
    NoValidCheckpoint for a manifest of a newer llmkit.
    """
    manifest = read_manifest(directory)
    verify_files(directory, {n: file for n, file in manifest["files"].items() if wanted(n)})
    return manifest


def verify_files(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises DamagedError for a file whose `size` or `sha256` differs from its entry, and Unsafe
    for a file outside the directory."""
    for name, expected in files.items():
        if not is_safe(name) or _has_link(directory, name):
            raise Unsafe(
                f"the manifest names a file outside its directory: {name!r}",
                where=str(directory / MANIFEST),
                next="remove this directory",
            )
        _verify_file(directory / name, expected)


def is_safe(name: str) -> bool:
    """Whether a name from a manifest stays in its directory: names of plain files and directories,
    separated by slashes."""
    return all(_SAFE_NAME.fullmatch(part) for part in name.split("/"))


def _has_link(directory: Path, name: str) -> bool:
    path = directory / name
    inside = [path, *path.parents][: name.count("/") + 1]
    return any(each.is_symlink() for each in inside)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest after verifying its own hash; raises DamagedError, or NoValidCheckpoint
    for a manifest of a newer llmkit."""
    try:
        outer = _read_outer(directory)
        manifest = outer["manifest"]
        whole = outer["sha256"] == _digest(manifest)
        if whole and manifest["format"] > _FORMAT:
            raise NoValidCheckpoint(
                "it was written by a newer llmkit",
                where=str(directory / MANIFEST),
                kept="all files, untouched",
                next="update llmkit",
            )
        files = manifest["files"].values()
        whole = whole and all(
            isinstance(file["size"], int) and isinstance(file["sha256"], str) for file in files
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST} is missing or unreadable ({error})") from error
    if not whole:
        raise DamagedError(f"{MANIFEST} does not match its own hash")
    return dict(manifest)


def is_signed(directory: Path) -> bool:
    """Whether a directory has a manifest that llmkit wrote, or a damaged one that it may have
    written."""
    try:
        found = _read_outer(directory)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(found, dict) and found.keys() >= {"manifest", "sha256"}


def discard(directory: Path) -> None:
    """Deletes a directory; a crash half-way leaves no incomplete directory of that name."""
    shutil.rmtree(_to_trash(directory), ignore_errors=True)


def quarantine(directory: Path) -> Path:
    """Renames a damaged directory so that it is never read again; returns its new path."""
    for number in range(1, 1000):
        quarantined = directory.with_name(f".corrupt-{directory.name}-{number}")
        if not quarantined.exists():
            return directory.rename(quarantined)
    raise WriteError("too many damaged directories", where=str(directory.parent))


def clean(parent: Path, prefix: str = "") -> None:
    """Removes incomplete directories, left by killed processes, whose names start with `prefix`."""
    for leftover in [*parent.glob(f".tmp-{prefix}*"), *parent.glob(f".trash-{prefix}*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def _clean_after(target: Path) -> None:
    """Removes what killed processes have left of this target."""
    for leftover in target.parent.glob(f".tmp-{glob.escape(target.name)}-*"):
        process = leftover.name.rpartition("-")[2]
        if leftover.name != f".tmp-{target.name}-{process}" or not process.isdecimal():
            continue  # of a target with a longer name
        # Imported here: it takes a seventh of the time of `llmkit --help`.
        import psutil

        if int(process) != os.getpid() and psutil.pid_exists(int(process)):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def make_directory(directory: Path) -> None:
    """Creates a directory and its parents; their names survive a power loss."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        flush_directory(directory.parent)


def flush_directory(directory: Path) -> None:
    """Flushes a directory's entries to disk, so that its names survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Writes a small text file atomically; raises WriteError."""
    # A file name that is not UTF-8 has lone surrogates; they become JSON escapes.
    replace_bytes(path, text.encode("utf-8", "backslashreplace"))


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes a small file atomically; raises WriteError."""
    partial = partial_of(path)
    try:
        with as_write_error(path), partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
            flush_directory(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def commit_file(target: Path, fill: Callable[[Path], None]) -> None:
    """Creates `target` from the file that `fill` writes at the path passed to it, which becomes
    visible when `fill` returns. Raises WriteError when writing fails, and then leaves nothing."""
    partial = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    try:
        with as_write_error(target):
            make_directory(target.parent)
            _clean_after(target)
            fill(partial)
            _flush(partial)
            partial.rename(target)
            flush_directory(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """The temporary path of a small file until it is complete."""
    return path.with_name(f".{path.name}.tmp")


def cannot_write(error: Exception, target: Path) -> Exception:
    """The WriteError for a failed write; any other error is returned unchanged.

    safetensors hides the system's error number in its message.
    """
    hidden = re.search(r"os error (\d+)", str(error))
    number = getattr(error, "errno", None) or (int(hidden.group(1)) if hidden else None)
    if number is None:
        return error
    what, next_step = os.strerror(number), "check the path and its permissions"
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what += f" ({free_bytes(target):,} bytes are free)"
        next_step = "free some space, then run the same command again to resume"
    return WriteError(
        f"cannot write {target.name}: {what}",
        where=str(target),
        kept="everything saved before; no incomplete file is left",
        next=next_step,
    )


def check_writable(path: Path) -> None:
    """Raises WriteError, without writing anything, if no file can be created at a path."""
    try:
        existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        is_directory = path.is_dir()
    except OSError as error:
        raise cannot_write(error, path) from error
    parent = existing if existing != path.absolute() else existing.parent
    if is_directory:
        what, advice = "it is a directory", "name a file in it"
    elif not parent.is_dir():
        what, advice = f"{parent} is not a directory", "choose another name"
    elif not os.access(parent, os.W_OK | os.X_OK):
        what, advice = f"{parent} is not writable", "choose another location"
    else:
        return
    raise WriteError(f"cannot write {path.name or path}: {what}", where=str(path), next=advice)


def free_bytes(path: Path) -> int:
    """Free bytes on the disk where the path is or will be."""
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def _publish(partial: Path, target: Path) -> None:
    old = _to_trash(target) if target.exists() else None
    try:
        partial.rename(target)
    except OSError:
        if old is not None:
            old.rename(target)
        raise
    flush_directory(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _to_trash(directory: Path) -> Path:
    trash = directory.with_name(f".trash-{directory.name}-{os.getpid()}")
    shutil.rmtree(trash, ignore_errors=True)
    return directory.rename(trash)


def _flush(path: Path) -> dict[str, Any]:
    with path.open("rb+") as file:
        # safetensors creates files that only their owner can read, regardless of the umask.
        os.fchmod(file.fileno(), path.parent.stat().st_mode & 0o666)
        os.fsync(file.fileno())
        return {
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "size": path.stat().st_size,
        }


def _verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    try:
        with open(path, "rb", opener=_open_regular) as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected["size"]:
                raise DamagedError(f"{path.name} has {size} bytes instead of {expected['size']}")
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read: {error.strerror}") from error
    if found != expected["sha256"]:
        raise DamagedError(
            f"{path.name} has sha256 {found[:12]}… instead of {expected['sha256'][:12]}…"
        )


def _open_regular(path: str, flags: int) -> int:
    """Opens a file without following links and without blocking on a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _read_outer(directory: Path) -> Any:
    with open(directory / MANIFEST, encoding="utf-8", opener=_open_regular) as file:
        return json.loads(file.read(LARGEST_MANIFEST))


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps({"manifest": manifest, "sha256": _digest(manifest)}, indent=1)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _digest(manifest: Any) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
