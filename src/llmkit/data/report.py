"""Reads all data of a config to find its faults, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmkit.config.schema import Config, DataConfig
from llmkit.data import sources
from llmkit.data.cache import Watch
from llmkit.data.documents import pieces
from llmkit.data.reading import Reading
from llmkit.data.sources import Source


def data_report(config: Config, watch: Watch) -> dict[str, Any]:
    """What each key of the data section holds: its files, and documents, bytes and blanks in all.

    Raises the error of the first fault that is found.
    """
    report = {}
    for key in ("train_files", "validation_files", "test_files"):
        if entries := getattr(config.data, key):
            found = sources.find(entries, f"data.{key}")
            with watch(f"reading data.{key}", sum(each.n_bytes for each in found)) as advance:
                files = [_file_report(source, config.data, advance) for source in found]
            names = ("documents", "blank", "text_bytes", "undecodable")
            report[key] = {name: sum(file[name] for file in files) for name in names}
            report[key]["files"] = files
    return report


def _file_report(
    source: Source, data: DataConfig, advance: Callable[[int], None]
) -> dict[str, Any]:
    reading = Reading(data, advance)
    documents = blank = text_bytes = size = 0
    empty = True
    for text, last in pieces(source, reading):
        size += len(text.encode())
        empty = empty and (not text or text.isspace())
        if last:
            documents += not empty
            blank += empty
            text_bytes += 0 if empty else size
            empty, size = True, 0
    return {
        "path": str(source.path),
        "format": source.format,
        "compression": source.compression,
        "bytes": source.n_bytes,
        "documents": documents,
        "blank": blank,
        "text_bytes": text_bytes,
        "undecodable": reading.undecodable,
    }
