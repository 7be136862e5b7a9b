"""Rows that teach nothing are refused with their file and what to do."""

from __future__ import annotations

import pytest

from llmkit.data.records import checks
from llmkit.data.records.labelled import Part
from llmkit.errors import DataError


def test_a_part_without_a_row_that_can_be_used_is_refused() -> None:
    blank = Part("train", files={"a.csv": 2})
    blank.blank = [(("a.csv", 1), "text"), (("a.csv", 2), "label")]
    with pytest.raises(DataError, match="all 2 rows are blank") as fault:
        checks.check_rows(blank)
    assert "a.csv" in fault.value.where
    with pytest.raises(DataError, match="has no row with text and label"):
        checks.check_rows(Part("test", files={"b.csv": 0}))
    checks.check_rows(Part("train", texts=[("a",)], raws=["x"], places=[("a.csv", 1)]))
