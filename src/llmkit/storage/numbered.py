"""Directories named by default: PREFIX-1, PREFIX-2, ..., each with a record of what it is for."""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmkit.storage import atomic

MAX_NAME_CHARACTERS, MAX_NAME_BYTES = 40, 100
"""Length of a name that is made from a user's text; file systems allow 255 bytes."""

REQUEST = "request"
"""The key of a record under which a directory says what it is for."""


def safe(text: str) -> str:
    """The text as part of a file name: its letters, digits and `.`, `_`, `=`, `-`, of any script;
    all else becomes `-`. Empty if nothing is left."""
    kept = "".join(
        letter if letter in "._=" or unicodedata.category(letter)[0] in "LMN" else "-"
        for letter in unicodedata.normalize("NFC", text)
    )
    short = re.sub("-+", "-", kept).strip("-._=")[:MAX_NAME_CHARACTERS]
    return short.encode()[:MAX_NAME_BYTES].decode(errors="ignore").strip("-._=")


def find_numbered(
    parent: Path, prefix: str, record: str, request: Mapping[str, Any]
) -> Path | None:
    """The directory with the highest number whose file `record` holds this request."""
    numbers = sorted(_numbers(parent, prefix), reverse=True)
    directories = (parent / f"{prefix}-{number}" for number in numbers)
    return next((each for each in directories if _request_in(each / record) == request), None)


def next_free(parent: Path, prefix: str) -> Path:
    """The name after the highest number in use."""
    return parent / f"{prefix}-{max(_numbers(parent, prefix), default=0) + 1}"


def claim(parent: Path, prefix: str, record: str, facts: Mapping[str, Any], again: bool) -> Path:
    """The directory for the request in these facts: the one that holds it, or else a new one, which
    appears with the facts in its file `record`. With `again` it is always a new one.

    A rename publishes a new directory, and fails if another process has just taken the name. So no
    two requests share a directory, and one request has one, on network file systems too. Raises
    WriteError.
    """
    while True:
        # The name comes first: a directory that appears after the search has taken it.
        target = next_free(parent, prefix)
        if not again and (found := find_numbered(parent, prefix, record, facts[REQUEST])):
            return found
        partial = target.with_name(f".tmp-{target.name}-{os.getpid()}")
        try:
            write_request(partial, record, facts)
            if _published(partial, target):
                return target
        except OSError as error:
            raise atomic.cannot_write(error, target) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_request(directory: Path, record: str, facts: Mapping[str, Any]) -> None:
    """Writes facts, with the request among them, into the file `record` of a directory, which is
    created. Raises OSError, and WriteError for the file."""
    atomic.make_directory(directory)
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    atomic.replace_text(directory / record, text + "\n")


def _published(partial: Path, target: Path) -> bool:
    """Whether the directory got its name; another process may have been faster."""
    try:
        partial.rename(target)
    except OSError:
        if target.exists():
            return False
        raise
    atomic.flush_directory(target.parent)
    return True


def _numbers(parent: Path, prefix: str) -> Iterator[int]:
    """The numbers in use. Names are compared without case: some file systems do not keep it."""
    pattern = re.compile(rf"{re.escape(prefix)}-([1-9][0-9]{{0,8}})", re.IGNORECASE)
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(parent):  # noqa: PTH208 (there may be very many runs)
            if match := pattern.fullmatch(unicodedata.normalize("NFC", name)):
                yield int(match[1])


def _request_in(path: Path) -> Any:
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        return json.loads(path.read_text(encoding="utf-8")).get(REQUEST)
    return None
