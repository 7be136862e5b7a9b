"""Every stage's verdict on one document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.config.schema import CleanConfig, DataConfig
from llmkit.data.cleaning.passes import output
from llmkit.data.cleaning.passes.explain import explain_document
from llmkit.data.cleaning.passes.pipeline import CleaningPlan, Passes, plan_cleaning
from llmkit.data.readers.files import find
from llmkit.errors import InputNotFound, UsageError
from llmkit.progress import Watch
from llmkit.storage.outputs import UNITS
from llmkit.storage.units import Units, Workers


@pytest.fixture
def plan(dirty: Path, watch: Watch) -> CleaningPlan:
    found = find([str(dirty)], "data.train_files")
    return plan_cleaning([], found, DataConfig(), CleanConfig(), watch)


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {each["stage"]: each["verdict"] for each in found["stages"]}


def test_all_stages_are_listed_up_to_the_one_that_removes(
    plan: CleaningPlan, dirty: Path, tmp_path: Path, watch: Watch
) -> None:
    directory = tmp_path / "out"
    with Units(directory / UNITS) as units:
        account = output.publish(plan, Passes(plan, units, Workers(), watch).carry_out(), directory)
    for reason, counts in account["removed"].items():
        place = counts["examples"][0]["place"]
        *others, last = explain_document(plan, place, (), directory)["stages"]
        at = last if last["stage"] == reason else others[-1]  # exact is before near copies
        assert at["stage"] == reason
        assert at["verdict"].startswith("removed")
    kept = verdicts(explain_document(plan, "a.jsonl#1", (), directory))
    assert [*kept] == ["decode", "mojibake", "empty", "repeated", "exact", "near_duplicate"]


def test_before_cleaning_it_says_that_nothing_was_compared(plan: CleaningPlan) -> None:
    assert "clean first" in verdicts(explain_document(plan, "b.jsonl#2", (), None))["exact"]


@pytest.mark.parametrize("place", ["a.jsonl", "a.jsonl#x", "a.jsonl#9999", "z.jsonl#1"])
def test_a_place_where_nothing_is_is_refused(place: str, plan: CleaningPlan) -> None:
    with pytest.raises((UsageError, InputNotFound)):
        explain_document(plan, place, (), None)
