"""The page of `llmkit report` on cleaned text: what was removed or changed, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llmkit.errors import DataError
from llmkit.reporting.format import heading, many
from llmkit.reporting.page.run_page import page_environment
from llmkit.storage import outputs

_FILES = 50  # in the table of files


class _Table(NamedTuple):
    title: str
    text: str
    columns: list[str]
    numeric: list[str]
    rows: list[list[Any]]


def cleaning_page(directory: Path) -> str:
    """The page on a directory that `llmkit clean` wrote. It needs no other file, and escapes all
    that comes from data. Raises DataError for a damaged report."""
    try:
        account = json.loads((directory / outputs.CLEANED).read_text(encoding="utf-8"))
        times = json.loads((directory / outputs.TIMES).read_text(encoding="utf-8"))
        tables = [table for table in _tables(account, times) if table.rows]
        sentence = _sentence(account)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"cannot read the report of `llmkit clean`: {error}",
            where=str(directory),
            next="clean the text again into another directory",
        ) from error
    return (
        page_environment()
        .get_template("cleaning.html")
        .render(
            title=directory.resolve().name,
            generator=outputs.REPORT,
            sentence=sentence,
            warnings=account["warnings"],
            tables=tables,
            settings=sorted(account["settings"].items()),
            versions=sorted(account["versions"].items()),
            use=f"llmkit pretrain --text {directory}",
        )
    )


def _sentence(account: Mapping[str, Any]) -> str:
    before, after = account["before"], account["after"]
    share = after["bytes"] / max(1, before["bytes"])
    return (
        f"{many(after['documents'], 'document')} of {before['documents']:,} are kept: "
        f"{after['bytes']:,} of {before['bytes']:,} bytes ({share:.1%})."
    )


def _tables(account: Mapping[str, Any], times: Mapping[str, Any]) -> Iterator[_Table]:
    yield _removals(account)
    yield _examples("Examples of what was removed", account["removed"], limits=True)
    yield _Table(
        "Changed",
        "Changes of documents that are kept.",
        ["stage", "documents", "bytes added"],
        ["documents", "bytes added"],
        [
            [heading(stage), each["documents"], each["bytes_added"]]
            for stage, each in account["edits"].items()
        ],
    )
    yield _examples("Examples of changes", account["edits"], limits=False)
    yield from _copies(account["clusters"])
    yield _Table(
        "Frequent lines",
        "Candidates for boilerplate: lines in many documents. Take them out with "
        "clean.boilerplate=N, in at least N documents; verse, plays and code repeat lines too.",
        ["line", "documents"],
        ["documents"],
        [[each["line"], each["documents"]] for each in account["boilerplate_candidates"]],
    )
    yield _counts("Languages", "language", account["languages"])
    yield _counts("Encodings", "encoding of files", account["encodings"], "files")
    yield from _files(account["sources"])
    yield _Table(
        "Speed",
        "Time of each stage, and the text that it passed in a second.",
        ["stage", "seconds", "MB/s"],
        ["seconds", "MB/s"],
        [[heading(name), each["seconds"], each["mb_per_second"]] for name, each in times.items()],
    )


def _removals(account: Mapping[str, Any]) -> _Table:
    """What came in, went for each reason, and is left: the sums close."""
    before, after = account["before"], account["after"]
    added = sum(each["bytes_added"] for each in account["edits"].values())
    rows = [["before", before["documents"], before["bytes"]]]
    rows += [
        [f"removed: {heading(reason)}", -each["documents"], -each["bytes"]]
        for reason, each in account["removed"].items()
    ]
    rows += [["changed", 0, added], ["after", after["documents"], after["bytes"]]]
    return _Table(
        "Documents and bytes", "", ["", "documents", "bytes"], ["documents", "bytes"], rows
    )


def _examples(title: str, stages: Mapping[str, Any], limits: bool) -> _Table:
    columns = ["stage", "where", "measured", *(["limit", "like", "text"] if limits else [])]
    rows = [
        [
            heading(stage),
            each["place"],
            each["value"],
            *([each["limit"], each.get("kept", ""), each["text"]] if limits else []),
        ]
        for stage, found in stages.items()
        for each in found["examples"]
    ]
    return _Table(title, "", columns, [], rows)


def _copies(clusters: Mapping[str, Any]) -> Iterator[_Table]:
    yield _Table(
        "Copies",
        f"{many(clusters['number'], 'cluster')} of copies; the first document of each is kept.",
        ["documents of a cluster", "clusters"],
        ["documents of a cluster", "clusters"],
        [[int(size), number] for size, number in clusters["sizes"].items()],
    )
    yield _Table(
        "Largest clusters",
        "",
        ["kept", "documents", "copies (estimated overlap)", "text"],
        ["documents"],
        [
            [
                each["kept"],
                each["documents"],
                ", ".join(f"{copy['place']} ({copy['estimate']:.2f})" for copy in each["copies"]),
                each["text"],
            ]
            for each in clusters["largest"]
        ],
    )


def _counts(title: str, name: str, counts: Mapping[str, int], what: str = "documents") -> _Table:
    return _Table(title, "", [name, what], [what], [[*each] for each in counts.items()])


def _files(sources: list[dict[str, Any]]) -> Iterator[_Table]:
    learned = [each for each in sources if not each["held_out"]]
    held_out = [each for each in sources if each["held_out"]]
    left = len(learned) - _FILES
    names = ["documents", "bytes", "kept_documents", "kept_bytes"]
    yield _Table(
        "Files",
        f"The first {_FILES}; {left:,} more are in {outputs.CLEANED}." if left > 0 else "",
        ["file", *map(heading, names)],
        [*map(heading, names)],
        [[each["file"], *(each[name] for name in names)] for each in learned[:_FILES]],
    )
    names = ["documents", "copies_within", "copies_in_training"]
    yield _Table(
        "Held-out files",
        "They are only compared: text that is like theirs was removed from the rest.",
        ["file", *map(heading, names)],
        [*map(heading, names)],
        [[each["file"], *(each.get(name, 0) for name in names)] for each in held_out],
    )
