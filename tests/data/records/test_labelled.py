import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.config.schema import DataConfig
from llmkit.data.readers.files import Source, find
from llmkit.data.readers.roles import resolve_label_columns
from llmkit.data.records import labelled
from llmkit.data.records.labelled import Row
from llmkit.data.records.parts import Counts
from llmkit.errors import DataError


def config(path: Path | str, **keys: object) -> DataConfig:
    return DataConfig.model_validate({"train_files": str(path), **keys})


def found(*paths: Path | str) -> list[Source]:
    return [source for path in paths for source in find([str(path)], "data.train_files")]


def read(path: Path | str, *, labelled_: bool = True, **keys: object) -> list[Row]:
    """The rows of a file, its columns resolved."""
    files = found(path)
    data = resolve_label_columns(files, config(path, **keys), lambda text: None, labelled_)
    return list(labelled.read_rows(files, data, labelled=labelled_))


def pairs(rows: list[Row]) -> list[tuple[object, object]]:
    return [(row.texts, row.label) for row in rows]


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def fault_of(path: Path, **keys: object) -> DataError:
    with pytest.raises(DataError) as fault:
        read(path, **keys)
    assert fault.value.next
    return fault.value


@pytest.mark.parametrize(
    ("name", "keys", "rows", "classes"),
    [
        ("sms_spam/spam_latin1.csv", {"encoding": "latin-1"}, 5572, {"ham": 4825, "spam": 747}),
        ("sms_spam/spam_utf8.csv", {}, 5572, {"ham": 4825, "spam": 747}),
        ("sms_spam/sms.tsv", {}, 5574, {"ham": 4827, "spam": 747}),
        (
            "sms_spam/spam_utf8.csv",
            {"text_column": 1, "label_column": 0},
            5572,
            {"ham": 4825, "spam": 747},
        ),
        ("trec/TREC.train.all", {"encoding": "latin-1"}, 5452, {"2": 86}),
        ("trec/TREC.test.all", {}, 500, {"2": 9}),
        ("trec/fine/TREC.test", {}, 500, {"NUM:dist": 16}),
        ("movie_reviews_mr/rt-polarity.all", {"encoding": "latin-1"}, 10662, {"0": 5331}),
        ("movie_reviews_mr/rt-polarity.all", {"encoding": "windows-1252"}, 10662, {"1": 5331}),
        ("subj/subj.all", {"encoding": "windows-1252"}, 10000, {"0": 5000, "1": 5000}),
    ],
)
def test_real_files_of_every_shape_are_read(
    shared: Path, name: str, keys: dict[str, object], rows: int, classes: dict[str, int]
) -> None:
    found = read(shared / "classify" / name, **keys)
    assert len(found) == rows
    assert [row.number for row in found] == list(range(1, rows + 1))
    counts = Counter(row.label for row in found)
    assert {label: counts[label] for label in classes} == classes


def test_banking77_is_what_the_csv_module_reads(shared: Path) -> None:
    for name, n_rows in (("train.csv", 10003), ("test.csv", 3080)):
        path = shared / "classify" / "banking77" / name
        with path.open(newline="", encoding="utf-8") as file:
            expected = [((row["text"],), row["category"]) for row in csv.DictReader(file)]
        assert len(expected) == n_rows
        assert pairs(read(path)) == expected


def test_several_labels_in_a_cell_are_separated(shared: Path) -> None:
    path = shared / "classify" / "goemotions" / "train.tsv"
    rows = read(path, text_column=0, label_column=1, label_separator=",")
    assert len(rows) == 43410
    assert sum(len(row.label or ()) > 1 for row in rows) == 7102
    assert len({frozenset(row.label or ()) for row in rows}) == 711
    assert rows[0].extra == {"2": "eebbqej"}


@pytest.mark.parametrize(
    ("name", "offset", "header"),
    [
        ("trec/TREC.train.all", 3173, 0),
        ("trec/fine/TREC.train", 3695, 0),
        ("movie_reviews_mr/rt-polarity.all", 3841, 0),
        ("subj/subj.all", 2603, 0),
        ("sms_spam/spam_latin1.csv", 606, 1),
    ],
)
def test_a_bad_byte_is_named_with_file_row_and_offset(
    shared: Path, name: str, offset: int, header: int
) -> None:
    path = shared / "classify" / name
    content = path.read_bytes()
    line = content[:offset].count(b"\n") + 1
    fault = fault_of(path)
    assert (
        f"data row {line - header}: byte 0x{content[offset]:02x} at offset {offset} " in fault.what
    )
    assert fault.where == f"{path}:{line}"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", [True, False])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(
            st.text(
                st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
            ).filter(lambda text: text.strip()),
            st.sampled_from(["a", "b", "NA", "null", "1"]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_everything_that_csv_writes_is_read_as_the_same_strings(
    tmp_path: Path, delimiter: str, header: bool, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        names = [("text", "label")] if header else []
        csv.writer(file, delimiter=delimiter).writerows([*names, *rows])
    found = read(path, delimiter=delimiter, header=header, text_column=0, label_column=1)
    assert pairs(found) == [((text,), label) for text, label in rows]


def test_texts_are_one_or_a_pair_or_joined(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "a,b,c,label\none,two,three,x\n")
    for columns, texts in [
        ("b", ("two",)),
        (["b", "a"], ("two", "one")),
        (["a", "b", "c"], ("one two three",)),
        ([0, 2], ("one", "three")),
    ]:
        assert read(path, text_column=columns, label_column="label")[0].texts == texts


def test_labels_are_kept_as_written_but_for_white_space_around_them(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label\na, Yes \nb,01\nc,1.0\nd,  \ne,NA\n")
    assert [row.label for row in read(path)] == ["Yes", "01", "1.0", None, "NA"]


def test_labels_of_json_are_written_as_json_writes_them(tmp_path: Path) -> None:
    values = ["x ", 3, 2.5, True, None, ["b", 1], []]
    lines = [json.dumps({"text": "t", "label": value}) for value in values]
    rows = read(written(tmp_path / "a.jsonl", "\n\n".join(lines)))
    assert [row.label for row in rows] == ["x", "3", "2.5", "true", None, ("b", "1"), ()]
    fault = fault_of(written(tmp_path / "b.jsonl", '{"text": "t", "label": {"a": 2}}\n'))
    assert fault.where == f"{tmp_path / 'b.jsonl'}:1"
    fault = fault_of(written(tmp_path / "c.jsonl", "\n{}x\n"), text_column="text")
    assert fault.what.startswith("data row 1: this line is not JSON")


def test_parquet_and_data_sets_are_read_as_csv_is(tmp_path: Path) -> None:
    table = {"id": [1, 2], "text": ["a", None], "label": ["x", "y"]}
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    pq.write_table(pa.table(table), folder / "train.parquet")
    for entry in (tmp_path / "a.parquet", f"hub:{folder}"):
        rows = read(entry)
        assert pairs(rows) == [(("a",), "x"), (("",), "y")]
        assert [row.extra for row in rows] == [{"id": 1}, {"id": 2}]


def test_columns_of_one_label_each_give_the_labels_that_are_set(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,toxic,rude\na,1,0\nb,0,0\nc,1.0,TRUE\n")
    rows = read(path, label_column=["toxic", "rude"])
    assert [row.label for row in rows] == [("toxic",), (), ("toxic", "rude")]
    path = written(tmp_path / "b.csv", "text,toxic,rude\na,1,0\nb,2,0\n")
    fault = fault_of(path, label_column=["toxic", "rude"])
    assert (fault.where, fault.what) == (f"{path}:3", "data row 2: '2' is neither 0 nor 1")


def test_fasttext_lines_have_one_label_or_several(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.txt", "__label__x a b\n__label__y __label__x c\nno label\n__label__z\n"
    )
    assert pairs(read(path)) == [
        (("a b",), "x"),
        (("c",), ("y", "x")),
        (("no label",), None),
        (("",), "z"),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1 a b\n0 c\n1 d \r\n\n0 e", [("a b", "1"), ("c", "0"), ("d ", "1"), ("e", "0")]),
        ("x\ta b\ny\tc\nx\td\ny\te\n", [("a b", "x"), ("c", "y"), ("d", "x"), ("e", "y")]),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n', [("a", "1"), ("b", "0")]),
    ],
)
def test_a_file_without_a_telling_name_is_known_by_its_lines(
    tmp_path: Path, content: str, expected: list[tuple[str, str]]
) -> None:
    rows = read(written(tmp_path / "a.all", content))
    assert pairs(rows) == [((text,), label) for text, label in expected]


def test_lines_that_give_no_clue_are_refused(tmp_path: Path) -> None:
    fault = fault_of(written(tmp_path / "a.txt", "one two\nthree four\nfive six\n"))
    assert "data.format=" in fault.next


def test_a_short_file_has_the_format_of_the_first(tmp_path: Path) -> None:
    train = written(tmp_path / "train.all", "1 a\n0 b\n1 c\n0 d\n")
    test = written(tmp_path / "test.all", "1 hello you\n0 dear me\n")
    data = resolve_label_columns(found(train, test), config(train), lambda text: None)
    rows = list(labelled.read_rows(found(test), data))
    assert pairs(rows) == [(("hello you",), "1"), (("dear me",), "0")]


def test_a_guess_is_said_and_what_is_given_is_not(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "label,text\nx,a\ny,b\n")
    said: list[str] = []
    resolve_label_columns(found(path), config(path), said.append)
    assert len(said) == 1
    assert "data.text_column=text, data.label_column=label" in said[0]
    by_name = config(path, text_column="text", label_column=0)
    resolve_label_columns(found(path), by_name, said.append)
    assert len(said) == 1
    by_number = config(path, text_column=1, label_column=0)
    resolve_label_columns(found(path), by_number, said.append)
    assert "found data.header=true; the columns are 0 'label', 1 'text'" in said[1]


def test_columns_that_cannot_be_guessed_are_listed(shared: Path) -> None:
    fault = fault_of(shared / "classify" / "goemotions" / "dev.tsv")
    assert "not clear which column is the text" in fault.what
    assert "1 (first '27')" in fault.next


def test_rows_without_labels_keep_all_other_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "id,text,label,\n7,a,x,z\n")
    extra = {"id": "7", "label": "x", "3": "z"}
    assert read(path, labelled_=False) == [
        Row(1, str(path), ("a",), None, extra, {"text": "a"}, ("id", "text", "label", "3"))
    ]
    assert read(path, labelled_=False, label_column="gone")[0].texts == ("a",)
    path = written(tmp_path / "a.jsonl", '{"text": "a", "n": 1}\n{"text": "b", "more": [2]}\n')
    assert [row.extra for row in read(path, labelled_=False)] == [{"n": 1}, {"more": [2]}]


def test_every_line_of_a_plain_text_is_a_row_if_none_needs_a_label(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "1 one\n\n2 two\u2028x\r\n")
    rows = read(path, labelled_=False)
    assert [(row.number, row.texts) for row in rows] == [
        (1, ("1 one",)),
        (2, ("",)),
        (3, ("2 two\u2028x",)),
    ]


def test_empty_lines_between_rows_are_not_rows_and_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label\n\na,x\n\n\nb,y\n\n")
    data = config(path, text_column="text", label_column="label")
    counts = Counts()
    rows = list(labelled.read_rows(found(path), data, counts=counts))
    assert [(row.number, row.label) for row in rows] == [(1, "x"), (2, "y")]
    assert counts.blank_lines == 4


@pytest.mark.parametrize(
    ("content", "row", "line", "part"),
    [
        ("text,label\na,x\nb\n", 2, 3, "this row has 1 field, expected 2 as in the first row"),
        ('text,label\n"a\nb",x\nc,y,z\n', 2, 4, "3 fields"),
        ('text,label\na,x\n"b,y\nc,z\n', 2, 3, "unexpected end"),
        ("text,label\na,x\nb\0,y\n", 2, 3, "NUL byte"),
        ("text;label\na;x\nb;y;z\n", 2, 3, "3 fields"),
    ],
)
def test_a_broken_row_is_reported_with_file_line_and_row(
    tmp_path: Path, content: str, row: int, line: int, part: str
) -> None:
    path = written(tmp_path / "a.csv", content)
    fault = fault_of(path)
    assert f"data row {row}: " in fault.what
    assert part in fault.what
    assert fault.where == f"{path}:{line}"


def test_quotes_of_a_tsv_are_text_unless_it_is_said_to_be_csv(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", 'text\tlabel\n"a"\tx\n"b\ty\n')
    assert [row.texts[0] for row in read(path)] == ['"a"', '"b']
    path = written(tmp_path / "b.tsv", 'text\tlabel\n"a\tb"\tx\nd\ty\n')
    assert "data.format=csv" in fault_of(path).next
    assert [row.texts[0] for row in read(path, format="csv")] == ["a\tb", "d"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "gb18030", "shift_jis"])
def test_a_named_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path / "a.csv", "text,label\r\n日本,x\r\n", encoding)
    name = encoding.removesuffix("-sig")
    assert pairs(read(path, encoding=name)) == [(("日本",), "x")]


def test_a_missing_column_is_reported_with_those_that_exist(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label\na,x\n")
    fault = fault_of(path, label_column="lable")
    assert "did you mean 'label'" in fault.what
    assert "0 'text', 1 'label'" in fault.next
    fault = fault_of(path, header=False, label_column="label")
    assert "no header" in fault.what


def test_reading_holds_only_a_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.csv", "text,label\n" + "some text,x\n" * 100_000)
    data = config(path, text_column="text", label_column="label")
    told: list[int] = []
    rows: Iterator[Row] = labelled.read_rows(found(path), data, advance=told.append)
    next(rows)
    assert sum(told) < path.stat().st_size // 2
