"""The third pass: the documents that are kept are written, and the trace of the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmkit.config.schema import CleanConfig
from llmkit.data.cleaning.passes.duplicates import EXACT_COPY
from llmkit.data.cleaning.passes.link import ReadLinks
from llmkit.data.cleaning.passes.rows_file import reading_rows, row_line, writing_rows
from llmkit.data.cleaning.passes.scan import ROWS_FILE, text_hash
from llmkit.data.cleaning.personal import mask_personal
from llmkit.storage.outputs import TRACE

TEXT_FILE = "text.jsonl.zst"
ORIGIN = "cleaned_from"
"""The column of cleaned text that names the file and row that it comes from."""

SHOWN_EXAMPLES = 5
"""Number of examples of each reason."""

_EXCERPT = 200  # characters
_WHY = ("reason", "value", "limit", "kept", "through")


class Scanned(NamedTuple):
    """A scan among all."""

    directory: Path
    first: int
    """The number of its first document."""
    before: Mapping[int, int]
    """For each of its sources the documents in earlier scans."""


def write_documents(
    scanned: Scanned,
    linked: Path,
    names: Sequence[str],
    settings: CleanConfig,
    shown: Collection[tuple[int, int]],
    directory: Path,
) -> dict[str, Any]:
    """Writes the documents of a scan that are kept, and the trace of those that were removed or
    changed; returns counts. `names` are those of the sources, and of the documents in `shown`
    excerpts are returned."""
    links, counts = ReadLinks(linked), WrittenCounts()
    number = scanned.first
    with (
        writing_rows(directory / TEXT_FILE) as write,
        (directory / TRACE).open("wb") as trace,
    ):
        for row in reading_rows(scanned.directory / ROWS_FILE):
            row["row"] += scanned.before.get(row["source"], 0)
            place = (row["source"], row["row"])
            if "reason" not in row:
                if links.kinds[number]:
                    row |= _copy(links, number, names, settings)
                number += 1
            if place in shown:
                counts.shown.append([*place, excerpt(row["text"])])
            counts.add(row, names)
            if "reason" in row or "edits" in row:
                trace.write(row_line(_traced(row, names, settings)))
            if "reason" not in row:
                origin = f"{names[place[0]]}#{place[1]}"
                write({row["column"]: row["text"], ORIGIN: origin, **row["values"]})
    return counts.facts()


class WrittenCounts:
    """What was kept, removed and changed."""

    def __init__(self) -> None:
        self.kept: dict[int, list[int]] = {}
        """For each source the documents and bytes that are kept."""
        self.removed: dict[str, dict[str, Any]] = {}
        self.edits: dict[str, dict[str, Any]] = {}
        self.shown: list[list[Any]] = []

    def add(self, row: Mapping[str, Any], names: Sequence[str]) -> None:
        """Count a document."""
        place = f"{names[row['source']]}#{row['row']}"
        if reason := row.get("reason"):
            removed = self.removed.setdefault(reason, {"documents": 0, "bytes": 0, "examples": []})
            removed["documents"] += 1
            removed["bytes"] += row["bytes"]
            if len(removed["examples"]) < SHOWN_EXAMPLES:
                facts = {key: row[key] for key in ("value", "limit", "kept") if key in row}
                removed["examples"].append({"place": place, **facts, "text": excerpt(row["text"])})
            return
        kept = self.kept.setdefault(row["source"], [0, 0])
        kept[0] += 1
        kept[1] += len(row["text"].encode())
        for stage, value, added in row.get("edits", ()):
            edits = self.edits.setdefault(stage, {"documents": 0, "bytes_added": 0, "examples": []})
            edits["documents"] += 1
            edits["bytes_added"] += added
            if len(edits["examples"]) < SHOWN_EXAMPLES:
                edits["examples"].append({"place": place, "value": mask_personal(str(value))[0]})

    def facts(self) -> dict[str, Any]:
        """The counts."""
        kept = {str(number): counts for number, counts in self.kept.items()}
        return {
            "kept": kept, "removed": self.removed, "edits": self.edits, "shown": self.shown
        }  # fmt: skip


def excerpt(text: str) -> str:
    """The beginning of a text in one line, without personal data."""
    return mask_personal(" ".join(text[: 4 * _EXCERPT].split())[:_EXCERPT])[0]


def _copy(
    links: ReadLinks, number: int, names: Sequence[str], settings: CleanConfig
) -> dict[str, Any]:
    """Why a document is removed that is a copy of another."""
    exact = links.kinds[number] == EXACT_COPY
    copied, kept = int(links.copied[number]), int(links.kept[number])
    source, at = links.place(kept)
    found: dict[str, Any] = {
        "reason": "exact" if exact else "near_duplicate",
        "value": 1.0 if exact else round(float(links.estimates[number]), 4),
        "limit": 1.0 if exact else settings.near_duplicate,
        "kept": f"{names[source]}#{at}",
    }
    if copied != kept:
        source, at = links.place(copied)
        found["through"] = f"{names[source]}#{at}"
    return found


def _traced(row: Mapping[str, Any], names: Sequence[str], settings: CleanConfig) -> dict[str, Any]:
    """A row of the trace: where a document is, and what happened to it."""
    found = {"file": names[row["source"]], "row": row["row"], "bytes": row["bytes"]}
    found["hash"] = row.get("hash") or text_hash(row["text"])
    found |= {
        key: row[key] for key in ("reason", "value", "limit", "kept", "through") if key in row
    }
    if edits := row.get("edits"):
        found["edits"] = {stage: value for stage, value, _ in edits}
    if settings.keep_removed and "reason" in row:
        found["text"] = row["text"]
    return found
