"""JSON that every reader accepts, whatever is written."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmkit.storage.strict_json import json_text, plain

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda some: st.lists(some) | st.dictionaries(st.text(), some),
)


def strictly(text: str) -> Any:
    """What a reader that knows no NaN reads."""
    return json.loads(text, parse_constant=lambda name: 1 / 0)


def without_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [without_non_finite(each) for each in value]
    if isinstance(value, dict):
        return {name: without_non_finite(each) for name, each in value.items()}
    return value


@given(VALUES)
def test_values_read_back_with_null_for_what_json_does_not_have(value: Any) -> None:
    assert strictly(json_text(value)) == without_non_finite(value)


def test_numbers_of_numpy_stay_numbers_and_other_objects_become_text() -> None:
    odd = {
        "count": np.int64(3), "loss": np.float32(0.5), "nan": np.float32("nan"),
        "yes": np.bool_(True), "some": np.array([1.0, np.inf]),
        "when": datetime.date(2024, 5, 1), "where": Path("a"), 7: ("x", None),
    }  # fmt: skip
    assert plain(odd) == {
        "count": 3, "loss": 0.5, "nan": None, "yes": True, "some": [1.0, None],
        "when": "2024-05-01", "where": "a", "7": ["x", None],
    }  # fmt: skip
