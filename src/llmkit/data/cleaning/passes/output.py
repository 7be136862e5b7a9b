"""The directory that `llmkit clean` writes: the text, the trace of what was removed, the report."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmkit.data.cleaning.passes.account import cleaning_account, cleaning_times
from llmkit.data.cleaning.passes.pipeline import Cleaned, CleaningPlan
from llmkit.errors import ConfigError, DataError
from llmkit.storage import atomic, cache
from llmkit.storage.outputs import CLEANED, TIMES, TRACE

TEXTS = "text"
_PARTIAL = ".text"
_LOCK = ".lock"


def recorded_account(directory: Path, plan: CleaningPlan | None = None) -> dict[str, Any] | None:
    """The account of a finished cleaning; None if there is none.

    Raises DataError for a damaged one, and ConfigError if it is not the one of this plan.
    """
    path = directory / CLEANED
    try:
        account = dict(json.loads(path.read_text(encoding="utf-8")))
        identity = str(account["identity"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as fault:
        raise DataError(
            f"cannot read the report: {fault}",
            where=str(path),
            next="remove the directory, and clean again",
        ) from fault
    if plan is not None and identity != _identity(plan):
        raise ConfigError(
            "this directory was cleaned from other files, or with other settings or versions",
            where=str(directory),
            kept="it, untouched",
            next="name another directory with --output, or remove this one",
        )
    return account


def publish(plan: CleaningPlan, cleaned: Cleaned, directory: Path) -> dict[str, Any]:
    """Puts the text, the trace and the account into the directory, the account last, and returns
    it. With several workers, one of them does this."""
    with _alone(directory):
        if (account := recorded_account(directory, plan)) is not None:
            return account
        account = {
            "command": "clean",
            "identity": _identity(plan),
            **cleaning_account(plan, cleaned),
        }
        try:
            _copy_texts(cleaned, directory)
            cleaned.copy_trace(directory / f".{TRACE}")
            (directory / f".{TRACE}").replace(directory / TRACE)
        except OSError as error:
            raise atomic.cannot_write(error, directory) from error
        atomic.replace_text(directory / TIMES, _json(cleaning_times(cleaned)))
        atomic.replace_text(directory / CLEANED, _json(account))
        return account


def trace_of(directory: Path, file: str, row: int) -> dict[str, Any] | None:
    """The row of the trace about a document; None if it was kept unchanged."""
    with (directory / TRACE).open(encoding="utf-8") as lines:
        for line in lines:
            found = dict(json.loads(line))
            if (found["file"], found["row"]) == (file, row):
                return found
    return None


def _copy_texts(cleaned: Cleaned, directory: Path) -> None:
    partial = directory / _PARTIAL
    for earlier in (partial, directory / TEXTS):
        shutil.rmtree(earlier, ignore_errors=True)
    partial.mkdir()
    for number, path in enumerate(cleaned.text_files()):
        with path.open("rb") as part, (partial / f"{number:05}.jsonl.zst").open("wb") as whole:
            shutil.copyfileobj(part, whole, 1 << 20)
            whole.flush()
            os.fsync(whole.fileno())
    partial.rename(directory / TEXTS)


def _identity(plan: CleaningPlan) -> str:
    return cache.key(plan.identity)


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    with (directory / _LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
