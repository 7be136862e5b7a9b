"""Find the sources that config keys name: files, directories, globs and Hugging Face data sets."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llmkit.config.schema import Config
from llmkit.data.readers import formats
from llmkit.data.readers.directories import CLEAN_PAGES, Folders, files_read, is_page, skipped_files
from llmkit.data.readers.formats import FORMAT_NAMES
from llmkit.errors import ConfigError, DataError, HubUnreachable, InputNotFound, Unsafe
from llmkit.storage import outputs, paths


@dataclass(frozen=True)
class DataSet:
    """One split of one data set, as `hub:NAME[:CONFIG][@SPLIT]` names it."""

    name: str
    config: str | None
    split: str

    def __str__(self) -> str:
        return f"hub:{self.name}{f':{self.config}' if self.config else ''}@{self.split}"


def parse_dataset_name(entry: str, key: str) -> DataSet:
    """The data set named by an entry of a config key; the split defaults to `train`."""
    match = re.fullmatch(r"hub:([^:@]+)(?::([^:@]+))?(?:@([^@]+))?", entry)
    if not match:
        raise ConfigError(
            f"{key}: {entry!r} is not of the form hub:NAME[:CONFIG][@SPLIT]",
            where=key,
            next="for example hub:roneneldan/TinyStories@validation",
        )
    return DataSet(match[1], match[2], match[3] or "train")


def dataset_fingerprint(data: DataSet) -> str:
    """A string that identifies the content of a data set: name, config, split and revision."""
    from datasets import load_dataset_builder

    with _faults(data):
        # Imported here: huggingface_hub is slow to import, and most data is in files.
        from llmkit.models import hub

        if not Path(data.name).exists() and hub.is_silent(data.name):
            # `datasets` would wait forever.
            raise ConnectionError(f"no answer in {hub.SECONDS:.0f} s")
        builder = load_dataset_builder(data.name, data.config)
        return f"{data} {builder.hash} {builder.config_id}"


def rows(data: DataSet) -> Iterator[dict[str, Any]]:
    """The rows of a data set in order, streamed rather than downloaded first."""
    from datasets import load_dataset

    with _faults(data):
        stream = load_dataset(data.name, data.config, split=data.split, streaming=True)
        yield from stream


@contextmanager
def _faults(data: DataSet) -> Iterator[None]:
    """Turn errors of `datasets` into ours, which say what to do."""
    try:
        yield
    except ConnectionError as fault:
        raise HubUnreachable(
            f"{data} cannot be reached: {fault}",
            where=str(data),
            next="check the network; HF_HUB_OFFLINE=1 uses a data set that was downloaded before",
        ) from fault
    except FileNotFoundError as fault:
        raise InputNotFound(f"{data} does not exist: {fault}", where=str(data)) from fault
    except RuntimeError as fault:
        if "script" not in str(fault):
            raise
        raise Unsafe(
            f"{data} needs a script that would have to be executed",
            where=str(data),
            next="use a copy of the data set in parquet, jsonl or csv",
        ) from fault
    except (ValueError, OSError) as fault:
        raise DataError(f"{data} cannot be read: {fault}", where=str(data)) from fault


@dataclass(frozen=True)
class Source:
    """One file or hub data set that holds text."""

    path: Path | DataSet
    format: str
    """A format of `formats.recognise`, or `hub`."""
    compression: str
    """One of COMPRESSIONS, or empty."""
    n_bytes: int
    """Size of the file on disk; 0 for a hub data set."""
    modified: int
    """Modification time in nanoseconds; 0 for a hub data set."""
    encoding: str = ""
    """The encoding of its byte order mark; empty if the config decides."""
    line_end: str = "\n"
    begin: int = 0
    end: int | None = None
    """The range of its bytes that is read; None is the end of the file."""


class PipedInput(NamedTuple):
    """Bytes that are read where no file is named, and their name in messages."""

    stream: BinaryIO
    name: str


def standard_input() -> PipedInput | None:
    """The stdin of this process; None if that is a terminal."""
    stream = getattr(sys.stdin, "buffer", None)
    return None if stream is None or stream.isatty() else PipedInput(stream, "stdin")


class Sources:
    """The sources of each key of a config, searched once, when the key is first used, and the
    input that is read where no file is named."""

    def __init__(
        self, config: Config, piped: PipedInput | None = None, pages: bool = False
    ) -> None:
        """With `pages`, directories are searched for PAGES too."""
        self.piped, self.pages = piped, pages
        data, prompts = config.data, config.generation.prompts_file
        self._entries: dict[str, Sequence[str]] = {
            "data.train_files": data.train_files,
            "data.validation_files": data.validation_files,
            "data.test_files": data.test_files,
            "generation.prompts_file": () if prompts is None else (prompts,),
        }
        for name, domain in data.mixture.items():
            self._entries[f"data.mixture.{name}.files"] = domain.files
            self._entries[f"data.mixture.{name}.validation_files"] = domain.validation_files
        self._found: dict[str, list[Source]] = {}
        self._folders: dict[str, Folders] = {}

    def of(self, key: str) -> list[Source]:
        """The sources of a key such as `data.train_files`, from `find`; empty if it is not
        given."""
        if key not in self._found and self._entries[key]:
            self._folders[key] = {}
            self._found[key] = find(self._entries[key], key, self._folders[key], self.pages)
        return self._found.get(key, [])

    def skipped(self, key: str) -> tuple[str, bool]:
        """A sentence about the files that are skipped in the directories of a key, and whether they
        are by far the larger part; empty if everything is read."""
        self.of(key)
        return skipped_files(self._folders.get(key, {}), self.pages)


def find(
    entries: Sequence[str], key: str, folders: Folders | None = None, pages: bool = False
) -> list[Source]:
    """The sources named by the entries of a config key, sorted, each file once.

    An entry is a file, a directory (searched for SUFFIXES, without hidden files; if these are a
    sliver of its text and it has no tables, for PROSE and CODE too; with `pages`, for PAGES), a
    glob, or `hub:NAME[:CONFIG][@SPLIT]`. A file that is named or matched by a glob may have any
    suffix: `formats` detects its format. Directories and globs skip output of llmkit, such as runs.
    Raises InputNotFound if an entry matches nothing, and DataError for a file that holds neither
    text nor rows. Each directory is recorded in `folders` with its files, read or not.
    """
    folders = {} if folders is None else folders
    paths: dict[str, Path] = {}
    sets: dict[str, Source] = {}
    for entry in entries:
        if entry.startswith("hub:"):
            sets[entry] = Source(parse_dataset_name(entry, key), "hub", "", 0, 0)
        else:
            paths.update(
                (os.path.realpath(path), path) for path in _expand(entry, key, folders, pages)
            )
    files = [_source(path) for path in sorted(paths.values())]
    if not sets and not any(source.n_bytes for source in files):
        raise InputNotFound(
            f"all {len(files)} files of {key} are empty" if files[1:] else f"{key} holds no text",
            where=", ".join(str(source.path) for source in files[:3]) or key,
            next=f"name files with text in {key}",
        )
    return files + [sets[entry] for entry in sorted(sets)]


def files_fingerprint(sources: Sequence[Source], advance: Callable[[int], None]) -> str:
    """The sha256 of the content and compression of the sources; names do not matter.

    `advance` is called with the number of bytes read.
    """
    whole = hashlib.sha256()
    for source in sources:
        if isinstance(source.path, DataSet):
            content = dataset_fingerprint(source.path)
        else:
            content = _file_digest(source.path, advance)
        whole.update(f"{source.format} {source.compression} {content}\n".encode())
    return whole.hexdigest()


def check_unchanged(source: Source) -> None:
    """Raise DataError if the file has changed since it was found."""
    if isinstance(source.path, DataSet):
        return
    status = _status(source.path)
    if (status.st_size, status.st_mtime_ns) != (source.n_bytes, source.modified):
        raise DataError(
            f"{source.path} changed while it was being read",
            where=str(source.path),
            next="wait until nothing writes to it, then run the same command again",
        )


def _expand(entry: str, key: str, folders: Folders, pages: bool) -> list[Path]:
    path = Path(entry).expanduser()
    if path.is_dir():
        try:
            folders[path] = list(outputs.walk(path))
        except OSError as fault:
            raise _unreadable(Path(fault.filename), fault) from fault
        return _search(path, folders[path], entry, key, pages)
    if path.exists():
        return [path]
    if not glob.has_magic(entry):
        raise _missing(path, entry, key)
    # Path.glob refuses absolute patterns and matches hidden files.
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207
    files = [match for match in matches if not match.is_dir()]
    if others := outputs.without(files, _fixed_part(path)):
        return others
    if files:
        raise _only_outputs(entry, key)
    raise InputNotFound(
        f"{key}: {entry} matches no file",
        where=f"{key}: {entry}",
        next="check the pattern; quote it against expansion by the shell; `**` crosses folders",
    )


def _search(
    directory: Path, files: Sequence[Path], entry: str, key: str, pages: bool
) -> list[Path]:
    if known := files_read(files, pages):
        return known
    if outputs.is_output_directory(directory):
        raise _only_outputs(entry, key)
    suffixes = ", ".join(f".{name}" for name in FORMAT_NAMES)
    others = sorted({path.suffix for path in files if path.suffix})
    pattern = f"{entry.rstrip('/')}/**/*{others[0] if len(others) == 1 else ''}"
    raise InputNotFound(
        f"{key}: the directory {entry} holds no text: looked for {suffixes}, also .gz and .zst",
        where=f"{key}: {entry}",
        next=CLEAN_PAGES
        if any(map(is_page, files))
        else f"'{pattern}' takes the {len(files)} other files in it as plain text"
        if files
        else "name a directory that holds text",
    )


def _fixed_part(pattern: Path) -> Path:
    """The directory of a glob before its first wildcard."""
    return next(each for each in pattern.parents if not glob.has_magic(str(each)))


def _only_outputs(entry: str, key: str) -> InputNotFound:
    return InputNotFound(
        f"{key}: {entry} holds only output of llmkit; runs and results are not data",
        where=f"{key}: {entry}",
        next="name the data itself; a file that is named explicitly is always read",
    )


def _missing(path: Path, entry: str, key: str) -> InputNotFound:
    near = [str(found) for found in paths.near(path)]
    return InputNotFound(
        f"{key}: {entry} does not exist",
        where=f"{key}: {entry}",
        next=f"did you mean {' or '.join(near)}?"
        if near
        else f"paths are relative to the current directory, {Path.cwd()}",
    )


def _source(path: Path) -> Source:
    status = _status(path)
    if not path.is_file():
        raise InputNotFound(
            f"{path} is not a regular file; text must be readable more than once",
            where=str(path),
            next="write its content to a file first",
        )
    try:
        with path.open("rb", buffering=0) as file:
            found = formats.recognise(file.read(formats.FIRST_BYTES), str(path))
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    return Source(
        path, found.format, found.compression, status.st_size, status.st_mtime_ns, *found[2:]
    )


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as fault:
        raise InputNotFound(f"{path} cannot be read: {fault.strerror}", where=str(path)) from fault


def _unreadable(path: Path, fault: OSError) -> InputNotFound:
    return InputNotFound(
        f"{path} cannot be read: {fault.strerror}",
        where=str(path),
        next=f"check the permissions of the {'directory' if path.is_dir() else 'file'}",
    )


def _file_digest(path: Path, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                advance(len(chunk))
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    return digest.hexdigest()
