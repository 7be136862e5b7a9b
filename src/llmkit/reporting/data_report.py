"""The human-readable data report: facts, and tables of classes, lengths and oddities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ODDITIES = ("blank", "left_out", "duplicates", "conflicts", "overlap", "unseen_labels")
PLACES = 5
"""Maximum number of rows listed for each oddity; JSON lists more."""


def report_tables(report: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the nested parts of the report of `finetune --dry-run` into tables."""
    nested = {"classes", "splits", "lengths", "warnings", *ODDITIES}
    facts = {name: value for name, value in report.items() if name not in nested}
    return {
        **facts,
        "splits": {name: {"rows": each["rows"]} for name, each in report["splits"].items()},
        "lengths": {name: _length(each) for name, each in report["lengths"].items()},
        **({"classes": list(_classes(report))} if "classes" in report else {}),
        "oddities": list(_oddities(report)),
    }


def _length(found: Mapping[str, Any]) -> dict[str, Any]:
    shares = {f"{percent}%": tokens for percent, tokens in found["percentiles"].items()}
    return {**shares, "truncated": f"{found['truncated_share']:.2%}"}


def _classes(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    counts = {name: each.get("classes", {}) for name, each in report["splits"].items()}
    for label in report["classes"]:
        yield {"class": label, **{name: found.get(label, 0) for name, found in counts.items()}}


def _oddities(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name in filter(report.__contains__, ODDITIES):
        found = report[name]
        count = found.get("count_stripped", found["count"])
        yield {"what": name.replace("_", " "), "count": count, "first": "; ".join(_places(found))}


def _places(found: Mapping[str, Any]) -> Iterator[str]:
    for row in found["rows"][:PLACES]:
        if "labels" in row:
            several = (f"{label}: {_place(places[0])}" for label, places in row["labels"].items())
            yield ", ".join(several)
        else:
            yield _place(row)


def _place(row: Mapping[str, Any]) -> str:
    return f"{str(row['file']).rpartition('/')[2]} row {row['row']}"
