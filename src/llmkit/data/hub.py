"""Data sets that the `datasets` library reads: from the Hugging Face hub, or a local directory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import ConfigError, DataError, HubUnreachable, InputNotFound, Unsafe


@dataclass(frozen=True)
class DataSet:
    """One split of one data set, as `hub:NAME[:CONFIG][@SPLIT]` names it."""

    name: str
    config: str | None
    split: str

    def __str__(self) -> str:
        return f"hub:{self.name}{f':{self.config}' if self.config else ''}@{self.split}"


def parse(entry: str, key: str) -> DataSet:
    """The data set that the entry of a config key names; the split is `train` if not given."""
    match = re.fullmatch(r"hub:([^:@]+)(?::([^:@]+))?(?:@([^@]+))?", entry)
    if not match:
        raise ConfigError(
            f"{key}: {entry!r} is not of the form hub:NAME[:CONFIG][@SPLIT]",
            where=key,
            next="for example hub:roneneldan/TinyStories@validation",
        )
    return DataSet(match[1], match[2], match[3] or "train")


def fingerprint(data: DataSet) -> str:
    """What identifies the content of a data set: its name, config and split, and its revision."""
    from datasets import load_dataset_builder

    with _faults(data):
        # Imported here: huggingface_hub takes long, and most data comes from files.
        from llmkit.models import hub

        if not Path(data.name).exists() and hub.is_silent(data.name):
            # `datasets` would wait for ever.
            raise ConnectionError(f"no answer in {hub.SECONDS:.0f} s")
        builder = load_dataset_builder(data.name, data.config)
        return f"{data} {builder.hash} {builder.config_id}"


def rows(data: DataSet) -> Iterator[dict[str, Any]]:
    """The rows of a data set in order, read as a stream: nothing is downloaded as a whole."""
    from datasets import load_dataset

    with _faults(data):
        stream = load_dataset(data.name, data.config, split=data.split, streaming=True)
        yield from stream


@contextmanager
def _faults(data: DataSet) -> Iterator[None]:
    """Turn what `datasets` raises into the error that says what to do."""
    try:
        yield
    except ConnectionError as fault:
        raise HubUnreachable(
            f"{data} cannot be reached: {fault}",
            where=str(data),
            next="check the network; HF_HUB_OFFLINE=1 takes a data set that was loaded before",
        ) from fault
    except FileNotFoundError as fault:
        raise InputNotFound(f"{data} does not exist: {fault}", where=str(data)) from fault
    except RuntimeError as fault:
        if "script" not in str(fault):
            raise
        raise Unsafe(
            f"{data} is made by a script that would have to be run",
            where=str(data),
            next="use a copy of the data set in parquet, jsonl or csv",
        ) from fault
    except (ValueError, OSError) as fault:
        raise DataError(f"{data} cannot be read: {fault}", where=str(data)) from fault
