"""The account of a cleaning: what came in, what is left, and why the rest went; its sums close."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llmkit.data.cleaning.passes.writing import SHOWN_EXAMPLES, excerpt
from llmkit.data.cleaning.stages import REASONS

if TYPE_CHECKING:
    from llmkit.data.cleaning.passes.pipeline import Cleaned, CleaningPlan

NOTABLE_SHARE = 0.2
"""A stage that removes a larger share of the documents or bytes causes a warning."""

_CANDIDATES = 20
"""Number of frequent lines in the account."""

_IN_DOCUMENTS = 6
"""A line in at least this many documents is a candidate for boilerplate. Units do not record lines
that they contain once."""


def cleaning_account(plan: CleaningPlan, cleaned: Cleaned) -> dict[str, Any]:
    """Documents and bytes before and after, and for each reason, change, cluster and source what
    happened to them; it depends on the plan alone.

    Bytes are those of UTF-8. The documents and bytes before are those after, and those of every
    reason; changes of what is kept are counted apart, with the bytes that they added.
    """
    sources = _sources(plan, cleaned)
    learned = [each for each in sources if not each["held_out"]]
    removed, edits = _added(cleaned, "removed"), _added(cleaned, "edits")
    account = {
        "before": {name: sum(each[name] for each in learned) for name in ("documents", "bytes")},
        "after": {
            name: sum(each[f"kept_{name}"] for each in learned) for name in ("documents", "bytes")
        },
        "removed": removed,
        "edits": edits,
        "sources": sources,
        "encodings": dict(Counter(each["encoding"] for each in sources)),
        "clusters": _clusters(plan, cleaned),
        "boilerplate_candidates": _candidates(cleaned),
        "languages": _languages(cleaned),
        "settings": plan.identity["settings"],
        "data": plan.identity["data"],
        "versions": plan.identity["versions"],
    }
    _close(account)
    return {**account, "warnings": list(_warnings(account))}


def cleaning_times(cleaned: Cleaned) -> dict[str, dict[str, float]]:
    """Seconds of each stage, and megabytes per second over all documents."""
    seconds: Counter[str] = Counter()
    for scan in cleaned.scans:
        seconds.update(scan["seconds"])
    n_bytes = sum(scan["bytes"] for scan in cleaned.scans)
    return {
        name: {"seconds": round(time, 3), "mb_per_second": round(n_bytes / 1e6 / time, 2)}
        for name, time in seconds.items()
        if time > 0
    }


def _close(account: Mapping[str, Any]) -> None:
    """Raises AssertionError if the sums do not close, which would be a bug."""
    removed, edits = account["removed"].values(), account["edits"].values()
    for name in ("documents", "bytes"):
        gone = sum(each[name] for each in removed)
        added = sum(each["bytes_added"] for each in edits) if name == "bytes" else 0
        left = account["after"][name]
        if account["before"][name] + added != left + gone:
            raise AssertionError(f"{name}: {account['before'][name]} + {added} != {left} + {gone}")


def _sources(plan: CleaningPlan, cleaned: Cleaned) -> list[dict[str, Any]]:
    scanned: dict[str, Counter[str]] = {}
    kept: dict[str, Counter[str]] = {}
    for scan in cleaned.scans:
        for number, counts in scan["sources"].items():
            scanned.setdefault(number, Counter()).update(counts)
    for written in cleaned.written:
        for number, (documents, n_bytes) in written["kept"].items():
            kept.setdefault(number, Counter()).update(documents=documents, bytes=n_bytes)
    found = []
    for each in plan.sources:
        number, left = str(each.number), kept.get(str(each.number), Counter())
        found.append(
            {
                "file": str(each.source.path),
                "held_out": each.is_held_out,
                **{name: scanned[number][name] for name in ("documents", "bytes", "undecodable")},
                "encoding": each.encoding.encoding if each.encoding else "",
                "kept_documents": left["documents"],
                "kept_bytes": left["bytes"],
                **cleaned.links["held_out"].get(number, {}),
            }
        )
    return found


def _added(cleaned: Cleaned, what: str) -> dict[str, Any]:
    """The counts of all units by stage, in the order of the stages."""
    found: dict[str, Any] = {}
    for written in cleaned.written:
        for stage, counts in written[what].items():
            total = found.setdefault(stage, dict.fromkeys(counts, 0) | {"examples": []})
            for name, value in counts.items():
                total[name] += value
            total["examples"] = total["examples"][:SHOWN_EXAMPLES]
    return {stage: found[stage] for stage in REASONS if stage in found}


def _clusters(plan: CleaningPlan, cleaned: Cleaned) -> dict[str, Any]:
    texts = {(s, row): text for each in cleaned.written for s, row, text in each["shown"]}

    def place(at: list[int]) -> str:
        return f"{plan.names[at[0]]}#{at[1]}"

    largest = [
        {
            "kept": place(each["kept"]),
            "documents": each["documents"],
            "text": texts.get((each["kept"][0], each["kept"][1]), ""),
            "copies": [{"place": place(copy), "estimate": copy[2]} for copy in each["copies"]],
        }
        for each in cleaned.links["largest"]
    ]
    return {
        "number": cleaned.links["clusters"],
        "sizes": cleaned.links["sizes"],
        "largest": largest,
    }


def _candidates(cleaned: Cleaned) -> list[dict[str, Any]]:
    counts: Counter[str] = Counter()
    for scan in cleaned.scans:
        counts.update(dict(scan["lines"]))
    frequent = sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:_CANDIDATES]
    return [
        {"documents": number, "line": excerpt(line)}
        for line, number in frequent
        if number >= _IN_DOCUMENTS
    ]


def _languages(cleaned: Cleaned) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for scan in cleaned.scans:
        counts.update(scan["languages"])
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def _warnings(account: Mapping[str, Any]) -> Iterator[str]:
    for stage, counts in account["removed"].items():
        share = max(
            counts[name] / max(1, account["before"][name]) for name in ("documents", "bytes")
        )
        if share > NOTABLE_SHARE:
            yield (
                f"the stage {stage} removed {share:.0%} of the text; look at its examples in the "
                "report before training on the rest"
            )
    gone = [
        each["file"]
        for each in account["sources"]
        if each["documents"] > 1 and not each["held_out"] and not each["kept_documents"]
    ]
    if gone:
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        yield f"nothing is left of {', '.join(gone[:3])}{more}"
    for each in account["sources"]:
        if each["encoding"] == "unknown":
            yield (
                f"{each['file']} is in no known encoding and was removed; "
                "name it with data.encoding=NAME"
            )
