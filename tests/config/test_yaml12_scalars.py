"""YAML 1.2 scalars, against the specification's table and against PyYAML where both agree."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config import yaml12
from llmkit.config.yaml12 import dump, resolve_scalar, split_values

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
VALUES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-.5e1", -5.0),
        ("1.", 1.0),
        ("010", 10),
        ("0o17", 15),
        ("0xFf", 255),
        ("+12", 12),
        ("~", None),
        ("", None),
        ("NULL", None),
        ("TRUE", True),
        ("False", False),
        (".inf", math.inf),
        ("-.INF", -math.inf),
    ],
)
def test_the_core_schema_of_yaml_1_2_is_kept(text: str, value: object) -> None:
    assert resolve_scalar(text) == value
    assert type(resolve_scalar(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "NO",
        "on",
        "yes",
        "y",
        "1_000",
        "1:30",
        "2001-01-01",
        "0b1",
        "1e",
        "e5",
        "nUll",
        ".",
        "=",
    ],
)
def test_what_only_yaml_1_1_takes_for_something_else_stays_text(text: str) -> None:
    assert resolve_scalar(text) == text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1e-3, 3e-3", ["1e-3", "3e-3"]),
        ("[1,2],{a: 1, b: 2},'x,y',\"a\\n,b\"", ["[1,2]", "{a: 1, b: 2}", "'x,y'", '"a\\n,b"']),
        ("a,", ["a"]),
        *(
            (one, [one])
            for one in ("", ",", "|", "a,,b", "a],[b", "*a,b", "!x,y", "a,b #c", "\0,a")
        ),
    ],
)
def test_commas_separate_values_outside_brackets_and_quotes(text: str, parts: list[str]) -> None:
    assert split_values(text) == parts


def test_a_number_beyond_64_bits_is_refused_and_costs_no_time() -> None:
    for text in ("9" * 100_000, str(2**63), str(-(2**63) - 1), "0x" + "f" * 17):
        with pytest.raises(ValueError, match="64 bits"):
            resolve_scalar(text)


@given(VALUES)
def test_a_dumped_value_reads_back_as_itself(value: object) -> None:
    assert yaml12.parse_scalar(dump(value)) == value


@given(VALUES)
def test_a_dumped_value_means_the_same_to_readers_of_yaml_1_1(value: object) -> None:
    assert yaml.safe_load(dump(value)) == value


def test_figures_are_written_as_people_write_them() -> None:
    assert [dump(x) for x in (0.0003, 1e-8, 0.1, 1.0, True, None)] == [
        "0.0003",
        "1.0e-08",
        "0.1",
        "1.0",
        "true",
        "null",
    ]
