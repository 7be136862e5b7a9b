"""What a run was trained on and what was held out, from its data report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from llmkit.reporting.format import figure_text, many
from llmkit.reporting.run_record import RunRecord

_Facts = Mapping[str, Any]

_SPLITS = {"train": "trained on", "validation": "held out", "test": "test"}
MAX_LABELS = 40
"""Maximum number of labels whose rows are listed."""

_FINDINGS = {
    "blank": "blank rows, skipped",
    "duplicates": "rows that repeat the text of an earlier row",
    "conflicts": "rows with the text of another row and another label",
    "overlap": "held-out rows that are in the training data too",
    "unseen_labels": "rows with a label that the training data lack",
    "identical": "rows whose chosen and rejected responses are the same, skipped",
    "other_prompt": "rows whose two conversations differ before their last message, skipped",
    "left_out": "rows whose whole response was truncated, skipped",
    "undecodable": "bytes that could not be decoded",
}


def data_tables(run: RunRecord) -> list[dict[str, Any]]:
    """The tables of the data: amounts of each part, rows of each label, and domains that were
    found."""
    report = run.facts.get("data") or {}
    tables = [_text_table(report.get("text") or {}), _split_table(report), _label_table(report)]
    return [table for table in (*tables, _found_table(report.get("domains") or {})) if table]


def data_lines(run: RunRecord) -> Iterator[tuple[str, str]]:
    """Names and values of what else is known of the data."""
    data, report = run.config.get("data") or {}, run.facts.get("data") or {}
    for key in ("train_files", "validation_files", "test_files"):
        if data.get(key):
            yield key.replace("_", " "), file_names(data[key])
    for name, domain in (data.get("mixture") or {}).items():
        if isinstance(domain, Mapping) and domain.get("files"):
            yield f"files of {name}", file_names(domain["files"])
    for key in ("train_rows", "validation_rows", "test_rows"):
        if data.get(key):
            yield key.replace("_", " "), str(data[key])
    yield "split", _split_text(run, report)
    for key, column in (report.get("columns") or {}).items():
        yield f"{key} column", figure_text(column)
    yield from _findings(report)
    yield from _overlaps(report.get("text") or {})


def file_names(paths: Sequence[Any] | str) -> str:
    """Paths without their folders, which are those of one machine."""
    names = [paths] if isinstance(paths, str) else paths
    return ", ".join(_file_name(str(name)) for name in names)


def _file_name(path: str) -> str:
    return path if path.startswith("hub:") or "://" in path else PurePath(path).name


def _text_table(domains: _Facts) -> dict[str, Any] | None:
    rows = []
    for domain, parts in domains.items():
        for part, found in parts.items():
            of = f"{domain}: " if domain else ""
            per_token = found["bytes"] / max(1, found["tokens"])
            rows.append(
                [
                    f"{of}{_SPLITS.get(part, part)}",
                    f"{found['documents']:,}",
                    f"{found['bytes']:,}",
                    f"{found['tokens']:,}",
                    f"{per_token:.2f}",
                    _files(found),
                ]
            )
    if not rows:
        return None
    columns = ["part", "documents", "bytes", "tokens", "bytes per token", "from"]
    return {"caption": "Text", "columns": columns, "numeric": columns[1:5], "rows": rows}


def _files(found: _Facts) -> str:
    more = found.get("more_files")
    return ", ".join(found.get("files", [])) + (f" and {more:,} more" if more else "")


def _split_table(report: _Facts) -> dict[str, Any] | None:
    """Rows and lengths of each part of labelled rows or conversations."""
    splits, lengths = report.get("splits") or {}, report.get("lengths") or {}
    rows = []
    for name in dict.fromkeys([*splits, *lengths]):
        found = splits.get(name) or {}
        counts = found.get("rows", "") if isinstance(found, Mapping) else found
        percentiles = (lengths.get(name) or {}).get("percentiles") or {}
        lines = [percentiles.get(rank) for rank in ("50", "95", "100")]
        cut = (lengths.get(name) or {}).get("truncated")
        rows.append([_SPLITS.get(name, name), *map(figure_text, (counts, *lines, cut))])
    if not rows:
        return None
    columns = ["part", "rows", "median tokens", "95% have at most", "longest", "truncated"]
    return {"caption": "Rows", "columns": columns, "numeric": columns[1:], "rows": rows}


def _label_table(report: _Facts) -> dict[str, Any] | None:
    splits = {
        name: found.get("classes") or {}
        for name, found in (report.get("splits") or {}).items()
        if isinstance(found, Mapping)
    }
    labels = list(dict.fromkeys(label for counts in splits.values() for label in counts))
    if not labels:
        return None
    labels.sort(key=lambda label: -splits.get("train", {}).get(label, 0))
    rows = [
        [label, *(figure_text(counts.get(label, 0)) for counts in splits.values())]
        for label in labels[:MAX_LABELS]
    ]
    more = len(labels) - len(rows)
    names = [_SPLITS.get(name, name) for name in splits]
    return {
        "caption": f"Rows of each of {many(len(labels), 'label')}"
        + (f"; the {more} rarest are not listed" if more else ""),
        "columns": ["label", *names],
        "numeric": names,
        "rows": rows,
    }


def _found_table(domains: _Facts) -> dict[str, Any] | None:
    if not domains:
        return None
    rows = [
        [name, figure_text(found.get("documents")), figure_text(found.get("bytes")),
         str(found.get("words", "")), str(found.get("example", ""))]
        for name, found in domains.items()
    ]  # fmt: skip
    columns = ["domain", "documents", "bytes", "telling words", "example"]
    return {
        "caption": "Domains that were found in the text",
        "columns": columns,
        "numeric": columns[1:3],
        "rows": rows,
    }


def _split_text(run: RunRecord, report: _Facts) -> str:
    """How the held-out data were chosen."""
    data, seed = run.config.get("data") or {}, run.config.get("seed", 0)
    mixture = (each for each in (data.get("mixture") or {}).values() if isinstance(each, Mapping))
    if data.get("validation_files") or any(each.get("validation_files") for each in mixture):
        return "the held-out data are separate files"
    if data.get("validation_rows"):
        return f"the held-out data are the rows {data['validation_rows']} of the training files"
    fraction = data.get("validation_fraction")
    if fraction == 0:
        return "nothing is held out"
    share = "a tenth" if fraction in (None, "auto") else f"{fraction:.0%}"
    kind = ", at most 2 MB," if fraction in (None, "auto") and report.get("text") else ""
    return f"{share} of the training data{kind} held out, drawn by seed {seed}"


def _findings(report: _Facts) -> Iterator[tuple[str, str]]:
    for key, name in _FINDINGS.items():
        found = report.get(key)
        count = found.get("count_stripped", found.get("count")) if isinstance(found, Mapping) else (
            found
        )  # fmt: skip
        if isinstance(count, int) and count:
            yield name, f"{count:,}"


def _overlaps(domains: _Facts) -> Iterator[tuple[str, str]]:
    for name, parts in domains.items():
        if (held_out := parts.get("validation")) is not None:
            of = f" of {name}" if name else ""
            found = held_out.get("overlap")
            yield f"overlap with the training text{of}", found or "none found"
