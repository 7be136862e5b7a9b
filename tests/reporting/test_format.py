"""Numbers, durations and text as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.reporting.format import clock, many, printable, short


def test_what_is_counted_is_in_the_plural_except_for_one() -> None:
    assert [many(n, "row") for n in (0, 1, 2, 1234)] == ["0 rows", "1 row", "2 rows", "1,234 rows"]


@given(st.text())
def test_no_character_remains_that_a_terminal_would_execute(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert all(a == b for a, b in zip(shown, text, strict=True) if b.isprintable())


@given(st.integers(0, 10**6))
def test_a_duration_reads_back_as_its_seconds(seconds: int) -> None:
    *rest, last = clock(seconds).split(":")
    assert len(last) == 2
    assert sum(int(n) * 60**k for k, n in enumerate(reversed([*rest, last]))) == seconds


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.03123456, "0.03123"), (9999, "9999"), (12345, "12.3k"), (1_250_000, "1.25M"),
        (-3e9, "-3G"), (0.0, "0"),
    ],
)  # fmt: skip
def test_a_figure_has_few_characters(value: float, shown: str) -> None:
    assert short(value) == shown
