"""Results as people read them: every figure stands somewhere, rows of one kind in a table."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llmkit.reporting.tables import layout, layout_text, show

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


def on_terminal(figures: dict[str, Any], width: int) -> str:
    """What a terminal of this width shows."""
    file = io.StringIO()
    show(layout(figures), Console(file=file, width=width, force_terminal=True, color_system=None))
    return file.getvalue()


WORDS = st.text("abcdefgh", min_size=1, max_size=30)
CELLS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)


@given(
    st.dictionaries(WORDS, CELLS, max_size=3),
    st.lists(st.fixed_dictionaries({"name": CELLS, "value": CELLS, "other": CELLS}), max_size=3),
    st.sampled_from([40, 60, 80]),
)
def test_a_terminal_of_any_width_divides_no_word(
    facts: dict[str, str], rows: list[dict[str, str]], width: int
) -> None:
    shown = on_terminal({**facts, "rows": rows}, width)
    assert max(map(len, shown.splitlines()), default=0) <= width
    found = shown.split()
    for text in [*facts, *facts.values(), *(cell for row in rows for cell in row.values())]:
        assert set(text.split()) <= set(found)


def test_a_table_that_does_not_fit_is_stacked_without_its_empty_cells() -> None:
    row = {"": "perplexity", "value": 79.42, "95% interval": "74.56 to 84.88", "unigram": 348.7}
    other = {**row, "": "log-likelihood", "95% interval": None}
    lines = on_terminal({"metrics": [row, other]}, 30).splitlines()
    assert [line.rstrip() for line in lines] == [
        "metrics",
        "  perplexity",
        "    value         79.42",
        "    95% interval",
        "      74.56 to 84.88",
        "    unigram       348.7",
        "  log-likelihood",
        "    value    79.42",
        "    unigram  348.7",
    ]


@pytest.mark.parametrize("width", [40, 80])
def test_a_path_is_left_whole_for_the_terminal(width: int) -> None:
    path = f"/data/{'x' * 100}.txt"
    assert path in on_terminal({"path": path}, width)
    assert path in on_terminal({"files": [{"path": path, "bytes": 3}]}, width)


def test_chinese_is_folded_between_any_two_characters() -> None:
    rows = [{"text": "床前明月光疑是地上霜" * 8, "label": "poem"}]
    lines = on_terminal({"rows": rows}, 40).splitlines()
    assert len([line for line in lines if "床" in line or "霜" in line]) > 3
    assert "poem" in " ".join(lines)
