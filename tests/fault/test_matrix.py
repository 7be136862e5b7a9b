"""The table of faults is fresh: every row stands once, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TABLE = (TESTS / "fault" / "MATRIX.md").read_text(encoding="utf-8")
LAST = {"F": 73, "N": 9, "G": 2}
ROWS = re.findall(r"^\| ([A-Z]\d\d) \| ([^|]+) \| ([^|]+) \|$", TABLE, re.M)


def test_every_row_stands_exactly_once_and_in_order() -> None:
    expected = [
        f"{kind}{number:02}" for kind, last in LAST.items() for number in range(1, last + 1)
    ]
    assert [row for row, _, _ in ROWS] == expected
    assert TABLE.count("\n| ") == len(expected) + 1  # the head


@pytest.mark.parametrize(("row", "shown"), [(row, shown) for row, _, shown in ROWS])
def test_every_row_is_covered_or_says_why_not(row: str, shown: str) -> None:
    names = re.findall(r"`([\w/.]+)::(\w+)`", shown)
    if shown.startswith("covered by test "):
        assert names, row
        assert re.sub(r"`[\w/.]+::\w+`(, )?", "", shown) == "covered by test "
    else:
        assert re.match(r"not producible here, because \w+", shown), row
    for path, name in names:
        assert name in names_in(TESTS / path), f"{row}: {path} has no {name}"


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
