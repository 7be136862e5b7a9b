import csv
import json
from pathlib import Path
from unicodedata import category

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmkit.config.schema import DataConfig
from llmkit.data.readers import decode, delimited, files, tables
from llmkit.data.readers.decode import Reading
from llmkit.errors import DataError, HubUnreachable


def read(path: Path | str, **settings: object) -> list[str]:
    """The texts of a table."""
    [source] = files.find([str(path)], "data.train_files")
    return list(
        tables.texts(source, Reading(DataConfig.model_validate(settings), lambda n_bytes: None))
    )


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def fault_of(path: Path, **settings: object) -> DataError:
    with pytest.raises(DataError) as fault:
        read(path, **settings)
    return fault.value


def test_a_row_is_a_document_in_every_format(tmp_path: Path) -> None:
    texts = ['one, "two"\nthree', "你好\t!", "é\u2028"]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
    rows = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
    written(tmp_path / "a.jsonl", "\r\n".join(rows))
    pq.write_table(pa.table({"id": [1, 2, 3], "text": texts}), tmp_path / "a.parquet")
    for suffix in ("csv", "jsonl", "parquet"):
        assert read(tmp_path / f"a.{suffix}") == texts
        assert read(tmp_path / f"a.{suffix}", text_column="text") == texts


@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
            min_size=2,
            max_size=2,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_csv_reads_back_what_csv_writes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    controls = sum(category(c) == "Cc" for row in rows for text in row for c in text)
    assume(controls <= 32)  # a file with more of them is taken for binary data
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["x", "text"], *rows])
    assert read(path) == [row[1] for row in rows]


def test_quotes_lose_no_rows_of_a_tsv(shared: Path) -> None:
    path = shared / "classify" / "sms_spam" / "sms.tsv"
    texts = read(path, text_column=1)
    assert len(texts) == 5574
    assert texts == [line.split("\t")[1] for line in path.read_text("utf-8").split("\n")[:-1]]


def test_a_table_with_unnamed_columns_and_line_breaks_in_fields_is_read(shared: Path) -> None:
    path = shared / "classify" / "sms_spam" / "spam_latin1.csv"
    texts = read(path, text_column="v2", encoding="latin-1")
    assert len(texts) == 5572
    fault = fault_of(path, text_column="v2")
    assert "offset 606 " in fault.what


def test_a_column_number_means_that_there_is_no_header(shared: Path) -> None:
    texts = read(shared / "text" / "tatoeba-en-zh.tsv", text_column=0)
    assert len(texts) == 8073
    assert len(set(texts)) == 7629


def test_the_only_column_needs_no_name(tmp_path: Path) -> None:
    assert read(written(tmp_path / "a.csv", "words\none\n\ntwo\n")) == ["one", "", "two"]


def test_a_column_that_is_not_there_is_reported_with_those_that_are(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "id,body\n1,x\n")
    for settings, part in [
        ({}, "several"),
        ({"text_column": "boddy"}, "did you mean 'body'"),
        ({"text_column": 2}, "last column is number 1"),
    ]:
        with pytest.raises(DataError, match=part) as fault:
            read(path, **settings)
        assert "1 'body'" in fault.value.next
    with pytest.raises(DataError, match="2 columns"):
        read(written(tmp_path / "b.csv", "text,text\n1,x\n"))


@pytest.mark.parametrize(
    ("name", "content", "line", "part"),
    [
        ("a.csv", 'text,n\na,1\n"b,2\nc,3\n', 3, "unexpected end"),
        ("a.csv", 'text,n\na,1\n"b"c,2\n', 3, "not CSV"),
        (
            "a.csv",
            'text,n\n"a\nb",1\nc\n',
            4,
            "this row has 1 field, expected 2 as in the first row",
        ),
        ("a.csv", "text,n\na\0,1\n", 2, "NUL byte in column 2"),
        ("a.csv", "text,n\ra,1\rb\r", 3, "this row has 1 field, expected 2 as in the first row"),
        ("a.tsv", "text\tn\na\tb\tc\n", 2, "3 fields"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"\n', 2, "not JSON"),
        ("a.jsonl", '{"text": "a"}\n\n["b"]\n', 3, "list, not an object"),
        ("a.jsonl", '{"text": "a"}\n{"text": 3}\n', 2, "int"),
        ("a.jsonl", '{"text": "a"}\n{"text": null}\n', 2, "null"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', 2, "no 'text'; it has 0 'txt'"),
        ("a.jsonl", '{"text": "\\ud800"}\n', 1, "surrogate"),
        ("a.jsonl", "[" * 100_000 + "\n", 1, "not JSON"),
    ],
)
def test_a_broken_row_is_reported_with_its_line(
    tmp_path: Path, name: str, content: str, line: int, part: str
) -> None:
    fault = fault_of(written(tmp_path / name, content))
    assert part in fault.what
    assert fault.where == f"{tmp_path / name}:{line}"
    assert fault.next


@pytest.mark.parametrize("separator", [";", ",", "\t", "|", "#"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_line_by_which_a_spreadsheet_names_the_separator_is_not_a_row(
    tmp_path: Path, separator: str, end: str
) -> None:
    lines = (f"sep={separator}", f"text{separator}n", f"a, b; c{separator}1", f"d{separator}2", "")
    rest = "a, b; c" if separator not in ",;" else '"a, b; c"'
    content = end.join(lines).replace("a, b; c", rest)
    assert read(written(tmp_path / "a.csv", content)) == ["a, b; c", "d"]
    fault = fault_of(written(tmp_path / "b.csv", content + f"e{separator}3{separator}4{end}"))
    assert fault.where == f"{tmp_path / 'b.csv'}:5"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.tsv"])
def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(decode, "LONGEST_LINE", 1000)
    fault = fault_of(written(tmp_path / name, '{"text":"a"}\n' + "x" * 600_000))
    assert "longer than" in fault.what
    assert fault.where == f"{tmp_path / name}:2"


def test_a_field_over_many_lines_has_the_same_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "LONGEST_LINE", 1000)
    try:
        fault = fault_of(written(tmp_path / "a.csv", 'text\n"' + "x\n" * 600))
    finally:
        csv.field_size_limit(131072)
    assert "longer than" in fault.what


def test_a_damaged_parquet_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"] * 1000}), path)
    path.write_bytes(path.read_bytes()[:-30])
    assert "parquet" in fault_of(path).what
    pq.write_table(pa.table({"text": [1, 2]}), path)
    assert fault_of(path).where == f"{path} row 1"


def test_a_local_data_set_is_read_as_the_hub_is(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    written(folder / "train.jsonl", '{"text": "a", "n": 1}\n{"text": "b", "n": 2}\n')
    written(folder / "test.jsonl", '{"text": "c", "n": 3}\n')
    assert read(f"hub:{folder}") == ["a", "b"]
    assert read(f"hub:{folder}@test") == ["c"]
    before = fingerprint(f"hub:{folder}")
    assert before == fingerprint(f"hub:{folder}@train") != fingerprint(f"hub:{folder}@test")
    written(folder / "train.jsonl", '{"text": "a", "n": 1}\n{"text": "b", "n": 2}\n{"text": "z"}\n')
    assert fingerprint(f"hub:{folder}") != before
    with pytest.raises(DataError, match="nowhere"):
        read(f"hub:{folder}@nowhere")


def test_a_hub_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable, match="hub:nobody/nothing@train"):
        fingerprint("hub:nobody/nothing")


def fingerprint(entry: str) -> str:
    return files.files_fingerprint(files.find([entry], "data.train_files"), lambda n_bytes: None)
