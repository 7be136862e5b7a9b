"""Recognize llmkit's own outputs: run directories, the cache and result files.

They are not data. A directory or glob skips them, so that the same command reads the same data
again. A file that is named explicitly is read, whatever wrote it.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from llmkit.errors import NoValidCheckpoint, WriteError
from llmkit.storage import atomic, paths

SETTINGS = ".settings.json"
"""Suffix of the file that records the settings of the result lines beside it."""

RUN, CONFIG, CHECKPOINTS = "run.json", "config.yaml", "checkpoints"
METRICS, TIMING, MEASURED = "metrics.jsonl", "timing.jsonl", "evaluation.json"
PAGE = "report.html"
"""The files of a run, and the directory of its checkpoints."""
SWEEP = "sweep.json"
"""The file of a sweep with its request; its runs are directories beside it."""
STATE = "state.json"
"""The file of a checkpoint with everything besides weights and moments."""
CLEANED, TRACE, TIMES = "clean.json", "removed.jsonl", "timing.json"
"""The report of a cleaning, and the files beside it: what was removed, and the times."""
UNITS = ".units"
"""The directory of the units of a cleaning that has not finished."""
FINAL, CARD = "final", "README.md"
"""Name of the finished model in the run directory, and of its model card."""

_STEP = re.compile(r"step-[0-9]{10}")
_CACHE_LOCK = re.compile(r"(tokens|tokenizer|domains)-[0-9a-f]{32}\.lock")

EVALUATION = "llmkit evaluate"
"""The generator that pages written by `evaluate` name."""

REPORT = "llmkit report"
"""The generator that pages written by `report` name."""

PROBLEM_TYPE, NUMBER_KIND = "problem_type", "regression"
"""The column that predicted numbers have instead of probabilities, and its value."""

TAGGED = ("spans", "probability")
WRITTEN = "generated_text"
"""The name of the text that `predict` writes for a source."""
"""The keys, and the last columns, of the predictions of taggers."""

_EVALUATION = re.compile(
    r'\{\s*"command": "evaluate"|command: evaluate\n|'
    rf'<!-- {EVALUATION} -->|<!doctype html>.*content="{EVALUATION}"',
    re.IGNORECASE | re.DOTALL,
)
_REPORT = re.compile(rf'<!doctype html>.*content="{REPORT}"', re.IGNORECASE | re.DOTALL)
_LINE = 1 << 20  # bytes of the first line that are read to see what wrote a file
_PAGE = 4096


def settings_of(path: Path) -> Path:
    """The path of the settings that the lines of a file were made with."""
    return path.with_name(path.name + SETTINGS)


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in the `checkpoints` directory of a run, newest last."""
    if not directory.is_dir():
        return []
    return sorted(each for each in directory.iterdir() if _STEP.fullmatch(each.name))


def walk(directory: Path) -> Iterator[Path]:
    """Yields the files below a directory that are neither hidden nor outputs of llmkit; raises
    OSError for a directory that cannot be read."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(directory, onerror=refuse):
        if is_output_directory(Path(folder)) or _is_cleaned_from(Path(folder), directory):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = (Path(folder, name) for name in names if not name.startswith("."))
        yield from (path for path in files if not is_output_file(path))


def without(paths: Iterable[Path], root: Path) -> list[Path]:
    """The paths that are neither outputs of llmkit nor in an output directory at or below `root`.

    Directories above `root` do not count: the user named `root` explicitly.
    """
    found: dict[Path, bool] = {}

    def ours(folder: Path) -> bool:
        if folder not in found:
            above = folder != root and folder != folder.parent and ours(folder.parent)
            found[folder] = above or is_output_directory(folder) or _is_cleaned_from(folder, root)
        return found[folder]

    return [path for path in paths if not (ours(path.parent) or is_output_file(path))]


def is_output_directory(directory: Path) -> bool:
    """Whether a directory is a run, a sweep, a model or checkpoint of a run, or the cache."""
    return (
        _is_run(directory)
        or is_sweep(directory)
        or _is_committed(directory)
        or _is_cache(directory)
    )


def is_sweep(directory: Path) -> bool:
    """Whether a directory holds the runs of a sweep."""
    try:
        record = json.loads((directory / SWEEP).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and {"command", "request"} <= record.keys()


def is_cleaned(directory: Path) -> bool:
    """Whether `clean` wrote a directory: its text is data, its trace is not."""
    try:
        return (directory / CLEANED).is_file()
    except OSError:
        return False


def _is_cleaned_from(directory: Path, root: Path) -> bool:
    """Whether `clean` wrote a directory below `root` from files that are also there, so that they
    would be read twice, or is writing it."""
    if directory == root:
        return False
    if (directory / UNITS).is_dir():
        return True
    try:
        sources = json.loads((directory / CLEANED).read_text(encoding="utf-8"))["sources"]
        files = [Path(each["file"]).resolve() for each in sources if not each["held_out"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False
    return any(file.is_relative_to(root.resolve()) for file in files)


def is_output_file(path: Path) -> bool:
    """Whether a file was written by `generate`, `predict`, `evaluate`, `report`, or by `clean` and
    is not its text."""
    try:
        status = path.stat()
        return path.is_file() and _is_result(str(path), status.st_size, status.st_mtime_ns)
    except OSError:
        return False


def holds_predictions(path: Path) -> bool:
    """Whether a file was written by `predict`; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        first = file.readline(_LINE).decode("utf-8", "replace")
    return _is_prediction(first) if first.startswith("{") else _has_predictions(first)


def holds_evaluation(path: Path) -> bool:
    """Whether a file was written by `evaluate`; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return bool(_EVALUATION.match(file.read(_PAGE).decode("utf-8", "replace")))


def holds_report(path: Path) -> bool:
    """Whether `report` wrote a file; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return bool(_REPORT.match(file.read(_PAGE).decode("utf-8", "replace").lstrip()))


def check_replaceable(path: Path, wrote: Callable[[Path], bool], command: str) -> None:
    """Raises WriteError for a file that cannot be written, or that the command, such as `report`,
    did not write; `wrote` finds out from an existing file."""
    atomic.check_writable(path)
    try:
        is_ours = not path.exists() or (path.is_file() and wrote(path))
    except OSError as error:
        raise atomic.cannot_write(error, path) from error
    if not is_ours:
        raise WriteError(
            f"{path} exists and was not written by `llmkit {command}`",
            where=str(path),
            next="name another file, or remove this one",
        )


def check_cleaned_directory(directory: Path) -> None:
    """Raises WriteError for a directory that cannot be written, or that holds other files."""
    atomic.check_writable(directory / CLEANED)
    if not directory.is_dir() or (directory / CLEANED).exists() or (directory / UNITS).exists():
        return
    if others := sorted(path.name for path in directory.iterdir()):
        raise WriteError(
            f"{directory} holds other files: {', '.join(others[:3])}",
            where=str(directory),
            kept="them, untouched",
            next="name a new directory with --output",
        )


def check_room(path: Path, n_bytes: int) -> None:
    """Raises WriteError if a file of this size does not fit on the disk."""
    free = atomic.free_bytes(path.absolute())
    if free < n_bytes:
        raise WriteError(
            f"cannot write {path.name}: it needs {n_bytes:,} bytes, and {free:,} are free",
            where=str(path),
            kept="nothing was written",
            next="free some space, or choose another disk",
        )


def _is_run(directory: Path) -> bool:
    with suppress(PermissionError):
        if checkpoints(directory / CHECKPOINTS):
            return True
    try:
        record = json.loads((directory / RUN).read_text(encoding="utf-8"))
    except OSError:
        return False
    except (ValueError, RecursionError):  # damaged
        return (directory / CONFIG).exists() or (directory / METRICS).exists()
    return isinstance(record, dict) and (
        {"command", "environment"} <= record.keys() or {"command", "request"} <= record.keys()
    )


def _is_committed(directory: Path) -> bool:
    """Whether `llmkit.storage.atomic` wrote a directory."""
    try:
        atomic.read_manifest(directory)
    except NoValidCheckpoint:  # written by a newer llmkit
        return True
    except atomic.DamagedError:
        return False
    return True


def _is_cache(directory: Path) -> bool:
    """Whether a directory is the cache, or was the cache of an earlier command."""
    if any(_CACHE_LOCK.fullmatch(each.name) for each in directory.glob("*.lock")):
        return True
    try:
        return paths.cache_directory().samefile(directory)
    except (OSError, WriteError):
        return False


@lru_cache(maxsize=1 << 16)
def _is_result(name: str, size: int, changed: int) -> bool:
    path = Path(name)
    if name.endswith(SETTINGS):
        return path.with_name(path.name.removesuffix(SETTINGS)).is_file()
    if settings_of(path).is_file() or is_cleaned(path.parent):
        return True
    return holds_predictions(path) or holds_evaluation(path) or holds_report(path)


def _is_prediction(line: str) -> bool:
    """Whether a JSON line is the prediction for a row."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if value.keys() >= {"text", WRITTEN}:
        return True
    if value.keys() >= {"text", *TAGGED}:
        return isinstance(value["spans"], list | None)
    return value.keys() >= {"text", "label", "probabilities"} and isinstance(
        value["probabilities"], dict
    )


def _has_predictions(header: str) -> bool:
    """Whether the first row of a table ends with the names of the columns that `predict` adds."""
    if header.rstrip("\r\n").endswith((f",{WRITTEN}", "," + ",".join(TAGGED))):
        return True
    if ",label," not in header:
        return False
    try:
        names = next(csv.reader([header]), [])
    except csv.Error:  # a line of text that is longer than a CSV field may be
        return False
    after = names[names.index("label") + 1 :] if "label" in names else []
    if after == [PROBLEM_TYPE]:
        return True
    return bool(after) and all(name.startswith("probability_") for name in after)
