"""What every stage finds in one document."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from llmkit.data.cleaning.passes.output import recorded_account, trace_of
from llmkit.data.cleaning.passes.pipeline import CleaningPlan
from llmkit.data.cleaning.passes.scan import NumberedSource, opened
from llmkit.data.cleaning.passes.sourced import SourcedText, sourced_texts
from llmkit.data.cleaning.stages import Judgement, Stages
from llmkit.data.readers.decode import Reading
from llmkit.errors import InputNotFound, UsageError

_KEY = "clean.explain"


def explain_document(
    plan: CleaningPlan, place: str, boilerplate: Collection[int], directory: Path | None
) -> dict[str, Any]:
    """The verdict of each stage on the document at FILE#ROW. Whether it is a copy is read from the
    directory of a finished cleaning, if there is one.

    Raises UsageError for a place of another form, InputNotFound if no document is there, and
    ConfigError for a directory that was cleaned with other settings.
    """
    compared = directory is not None and recorded_account(directory, plan) is not None
    source, row = _located(plan, place)
    (readable, encoding, _), data = opened(source, plan.data)
    verdicts = [_verdict("decode", encoding, "", "kept" if readable else "removed")]
    if readable is None:
        return {"document": place, "stages": verdicts}
    reading = Reading(data, lambda n: None)
    document = next((each for each in sourced_texts(readable, reading) if each.row == row), None)
    if document is None:
        raise InputNotFound(
            f"there is no row {row}", where=f"{_KEY}: {place}", next="rows count from 1"
        )
    verdicts += _of_stages(plan, document, boilerplate)
    if verdicts[-1]["verdict"] != "removed":
        verdicts += _of_copies(plan, source, row, directory if compared else None)
    return {"document": place, "stages": verdicts}


def _located(plan: CleaningPlan, place: str) -> tuple[NumberedSource, int]:
    name, mark, row = place.rpartition("#")
    if not mark or not row.isdecimal():
        raise UsageError(
            f"{place!r} is not FILE#ROW", where=_KEY, next="write it as in removed.jsonl: a.txt#3"
        )
    found = [each for each in plan.sources if name in (str(each.source.path), _name(each))]
    if len(found) != 1:
        files = ", ".join(str(each.source.path) for each in plan.sources[:5])
        what = f"{name} is {'the name of several' if found else 'none'} of the files"
        raise InputNotFound(what, where=f"{_KEY}: {place}", next=f"the files are {files}")
    return found[0], int(row)


def _name(each: NumberedSource) -> str:
    return Path(str(each.source.path)).name


def _of_stages(
    plan: CleaningPlan, document: SourcedText, boilerplate: Collection[int]
) -> list[dict[str, Any]]:
    passed = Stages(plan.settings, boilerplate).passed(document.text)
    return [
        _verdict(each.stage, each.value, each.limit, _words(each)) for each in passed.judgements
    ]


def _words(judgement: Judgement) -> str:
    return "removed" if judgement.removed else "changed" if judgement.changed else "kept"


def _of_copies(
    plan: CleaningPlan, source: NumberedSource, row: int, directory: Path | None
) -> list[dict[str, Any]]:
    stages = [
        name
        for name, wanted in (
            ("exact", plan.settings.exact),
            ("near_duplicate", plan.settings.near_duplicate),
        )
        if wanted
    ]
    if source.is_held_out:
        return [_verdict(stage, "", "", "held out: only compared") for stage in stages]
    if directory is None:
        return [_verdict(stage, "", "", "not compared yet: clean first") for stage in stages]
    found = trace_of(directory, str(source.source.path), row) or {}
    return [
        _verdict(stage, found["value"], found["limit"], f"removed: like {found['kept']}")
        if found.get("reason") == stage
        else _verdict(stage, "", "", "kept")
        for stage in stages
    ]


def _verdict(stage: str, value: Any, limit: Any, verdict: str) -> dict[str, Any]:
    return {"stage": stage, "value": value, "limit": limit, "verdict": verdict}
