"""Results as people read them: every figure stands somewhere, rows of one kind in a table."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmkit.reporting.tables import layout, layout_text

FIGURES = {
    "loss": 0.123456789,
    "model": {"name": "runs/a", "parameters": 12},
    "validation": {"a": {"loss": 1.5, "rows": 3}, "b": {"loss": 2.5, "rows": 4}},
    "mistakes": [{"text": "one", "label": "x"}, {"text": "two", "label": None}],
}


def test_figures_are_lines_and_mappings_alike_are_a_table() -> None:
    lines = layout_text(layout(FIGURES)).splitlines()
    assert lines[:3] == ["loss: 0.123457", "model.name: runs/a", "model.parameters: 12"]
    rows = [line.split() for line in lines]
    for row in (["loss", "rows"], ["a", "1.5", "3"], ["b", "2.5", "4"], ["one", "x"], ["two"]):
        assert row in rows


@given(st.dictionaries(st.text("abc_", min_size=1), st.text("a \x1b[31m"), max_size=4))
def test_text_of_a_user_commands_no_terminal(figures: dict[str, str]) -> None:
    assert "\x1b" not in layout_text(layout(figures))
