"""Rows that teach nothing are refused with their file and what to do."""

from __future__ import annotations

import pytest

from llmkit.data.records import checks
from llmkit.data.records.labels import SINGLE, Labels
from llmkit.data.records.parts import Part
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


def test_rows_of_one_label_are_refused_with_the_blank_ones_that_may_be_the_cause() -> None:
    train = Part("train", texts=[("a",)], raws=["x"], places=[("a.csv", 1)])
    with pytest.raises(DataError, match="has the label 'x': there is nothing to learn"):
        checks.check_training_rows(train, Labels(SINGLE, ("x",)))
    train.blank = [(("a.csv", 2), "label")]
    with pytest.raises(DataError, match=r"but for 1 blank row \(a.csv row 2\): there is nothing"):
        checks.check_training_rows(train, Labels(SINGLE, ("x",)))
