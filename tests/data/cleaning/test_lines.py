"""Lines that repeat, within a document and over documents."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.cleaning import lines
from llmkit.data.cleaning.lines import (
    LineCounts,
    frequent,
    hashes_of_lines,
    line_hash,
    repeated_share,
    without_lines,
)

LINES = st.lists(st.sampled_from(["", " a", "a", "bb ", "ccc c", "dddd"]), max_size=12)


@given(LINES)
def test_the_share_is_that_of_characters_in_lines_seen_before(given: list[str]) -> None:
    seen, repeated, total = set[str](), 0, 0
    for line in map(str.strip, given):
        total += len(line)
        repeated += len(line) if line in seen else 0
        seen.add(line)
    assert repeated_share(given) == pytest.approx(repeated / total if total else 0)


def test_lines_are_counted_once_for_each_document() -> None:
    counts = LineCounts()
    for document in (["a line of words", "a line of words", "x"], ["a line of words"], ["x"]):
        counts.add(document)
    assert counts.common(5) == [("a line of words", 2)]


def test_rare_lines_are_forgotten_before_they_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "_MOST", 50)
    counts = LineCounts()
    for number in range(200):
        counts.add(["the same three words", f"only in number {number}"])
    assert len(counts.counts) <= 51
    assert counts.common(1) == [("the same three words", 200)]


def test_frequent_lines_are_those_of_all_parts_together() -> None:
    documents = [["one two three", f"line number {n % 7} here", str(n)] for n in range(70)]
    parts = [documents[:30], documents[30:]]
    hashes = [
        np.sort(np.array([h for each in part for h in hashes_of_lines(each)], np.uint64))
        for part in parts
    ]
    counts = Counter(line for each in documents for line in set(each) if len(line.split()) > 2)
    for least in (2, 10, 11, 71):
        wanted = {line_hash(line) for line, n in counts.items() if n >= least}
        assert frequent(hashes, least) == wanted


def test_lines_that_are_taken_out_leave_the_others_as_they_are() -> None:
    given = ["  keep  this one", "take out this", "", "x"]
    text, taken = without_lines(given, {line_hash("take out this")})
    assert (text, taken) == ("  keep  this one\n\nx", ["take out this"])
