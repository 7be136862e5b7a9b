import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.readers import columns, delimited
from llmkit.data.readers.columns import Columns
from llmkit.errors import DataError

REVIEWS = [["bad", "a film"], ["good", "b film"], ["bad", "c film"], ["good", "d film"]]


@pytest.mark.parametrize(
    ("names", "rows", "text", "label"),
    [
        (("text", "label"), [], (0,), (1,)),
        (("Category", "Text", "id"), [], (1,), (0,)),
        (("label", "masseges", "", ""), [], (1,), (0,)),
        (("v1", "v2", "", "", ""), [[*row, "", "", ""] for row in REVIEWS], (1,), (0,)),
        (None, REVIEWS, (1,), (0,)),
        (("premise", "hypothesis", "label"), [], (0, 1), (2,)),
        (("id", "sentence", "foo"), [], (1,), ()),
        (("id", "review"), [], (1,), ()),
        (("text", "foo"), [], (0,), (1,)),
        (("text", "label", "category"), [], (0,), ()),
        (("text", "sentence", "label"), [], (), (2,)),
        (("a", "b"), [["x", "x"], ["x", "x"]], (), ()),
        (("a", "b"), [["x", "y"], ["z", "w"]], (), ()),
        (("a", "b", "c"), [[*row, "1"] for row in REVIEWS], (), ()),
    ],
)
def test_columns_are_guessed_only_where_one_can_be_meant(
    names: tuple[str, ...] | None,
    rows: list[list[str]],
    text: tuple[int, ...],
    label: tuple[int, ...],
) -> None:
    table = Columns(names, tuple(rows[0]) if rows else ())
    assert columns.guess(table, ((), ()), lambda: rows) == (text, label)


def test_what_is_given_is_not_guessed() -> None:
    table = Columns(("text", "label", "title", "stars"), ())
    assert columns.guess(table, ((2,), ()), list) == ((2,), ())
    assert columns.guess(table, ((2,), (3,)), list) == ((2,), (3,))
    assert columns.guess(table, ((), (3,)), list) == ((0,), (3,))


@pytest.mark.parametrize(
    ("rows", "header"),
    [
        ([["text", "label"], ["text", "label"]], True),
        ([["v1", "v2", "", ""], ["ham", "hello you", "", ""], ["ham", "hi", "", ""]], True),
        ([["ham", "Go until jurong"], ["spam", "win"], ["ham", "ok"]], False),
        ([["My favourite food.", "27", "eebbqej"], ["No", "27", "ed"]], False),
        ([["1", "2"], ["3", "4"]], False),
        ([["", ""], ["a", "b"]], False),
        ([["a rather long sentence of words", "x"], ["b", "y"]], False),
        ([["words"], ["one"], ["two"]], True),
    ],
)
def test_a_header_is_distinguished_from_data(rows: list[list[str]], header: bool) -> None:
    assert columns.looks_like_header(rows) is header


def test_a_column_that_is_not_there_is_reported_with_those_that_are() -> None:
    named, bare = Columns(("id", "body", "id"), ()), Columns(None, ("x", "hello"))
    for table, wanted, said in [
        (named, "boddy", "did you mean 'body'"),
        (named, "id", "name of 2 columns"),
        (named, 3, "last column is number 2"),
        (bare, "id", "has no header"),
    ]:
        with pytest.raises(DataError, match=said) as fault:
            table.find(wanted, "data.label_column", "a.csv")
        assert "data.label_column; a.csv" in fault.value.where
        assert "from 0" in fault.value.next
        assert ("1 'body'" if table is named else "1 (first 'hello')") in fault.value.next


def test_a_column_without_a_name_goes_by_its_number() -> None:
    table = Columns(("id", "", "body", "id"), ())
    assert [table.label(number) for number in range(4)] == [0, 1, "body", 3]


@given(
    st.lists(
        st.lists(st.text("ab ,;\t\"'é\n", max_size=6), min_size=2, max_size=2),
        min_size=2,
        max_size=6,
    ),
    st.sampled_from(",;\t"),
)
def test_the_delimiter_of_a_table_with_named_columns_is_found(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], delimiter: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([["text", "label"], *rows])
    with path.open(newline="", encoding="utf-8") as file:
        assert delimited._delimiter(list(file)) == delimiter


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("Hello, world;pos\nYes;neg\nA, b, c;pos\n", ";"),
        ("yes, sure\tpos\nno\tneg\n", "\t"),
        ('"a;b",x\n"c",y\n', ","),
        ("words\none\n", ","),
        ("a,b\n1;2,3\n", ","),
    ],
)
def test_the_delimiter_parts_all_rows_alike(text: str, delimiter: str) -> None:
    assert delimited._delimiter(text.splitlines(keepends=True)) == delimiter


def test_looking_ahead_delays_a_fault_until_its_row_is_reached() -> None:
    def items() -> object:
        yield from (1, 2)
        raise DataError("broken")

    sample, rest = delimited.peek(items(), lambda item: 1)  # type: ignore[arg-type]
    assert sample == [1, 2]
    assert [next(rest), next(rest)] == [1, 2]
    with pytest.raises(DataError, match="broken"):
        next(rest)


def test_looking_ahead_is_bounded(tmp_path: Path) -> None:
    seen = []
    sample, rest = delimited.peek((seen.append(n) or n for n in range(10**6)), lambda item: 1)
    assert len(sample) == len(seen) == delimited.SAMPLE_ROWS
    sample, rest = delimited.peek(iter(range(100)), lambda item: delimited.SAMPLE_CHARACTERS)
    assert len(sample) == 2
    assert list(rest) == list(range(100))
