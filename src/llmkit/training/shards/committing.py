"""Directories that all processes fill together, and that one rename makes visible."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from llmkit.distributed.processes import Processes
from llmkit.storage import atomic
from llmkit.storage.atomic import FileFacts


def alike(processes: Processes | None) -> AbstractContextManager[None]:
    """A context that raises on every rank if its body raises on any."""
    return nullcontext() if processes is None else processes.alike()


def of_main(value: bool, processes: Processes | None) -> bool:
    """The value of rank 0."""
    if processes is None:
        return value
    return bool(processes.largest([value and processes.is_main])[0])


def commit_together(
    target: Path,
    fill: Callable[[Path], Mapping[str, FileFacts]],
    facts: Mapping[str, Any],
    processes: Processes | None,
) -> None:
    """Creates `target` with the files that all ranks write into one directory; see `atomic.commit`.

    `fill` returns the facts of the files that the rank has hashed. Rank 0 hashes the others, writes
    the manifest and renames, once every rank has succeeded; else every rank raises.
    """
    if processes is None or processes.count == 1:
        atomic.commit(target, fill, facts)
        return
    draft = atomic.Draft(target) if processes.is_main else None
    try:
        with processes.alike(), atomic.as_write_error(target):
            if draft is not None:
                draft.make()
        directory = Path(processes.of_main("" if draft is None else str(draft.directory)))
        hashed: Mapping[str, FileFacts] = {}
        with processes.alike(), atomic.as_write_error(target):
            hashed = fill(directory)
        found = [json.loads(text) for text in processes.of_each(json.dumps(hashed))]
        with processes.alike(), atomic.as_write_error(target):
            if draft is not None:
                draft.publish(facts, {name: each for own in found for name, each in own.items()})
    finally:
        if draft is not None:
            draft.discard()
