"""Formats are recognised by what a file holds, whatever it is called."""

from __future__ import annotations

import gzip
import io
import json
import random
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from llmkit.config.schema import DataConfig
from llmkit.data.readers import files, tables
from llmkit.data.readers.decode import Reading
from llmkit.data.readers.files import Source
from llmkit.data.text import documents
from llmkit.errors import DataError

ROWS = [{"text": f"row {number} of é and 日", "n": number} for number in range(200)]
TEXTS = [row["text"] for row in ROWS]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def source_of(path: Path, content: bytes) -> Source:
    path.write_bytes(content)
    [source] = files.find([str(path)], "data.train_files")
    return source


def reading(**keys: object) -> Reading:
    return Reading(DataConfig.model_validate(keys), lambda n_bytes: None)


def texts(path: Path, content: bytes, **keys: object) -> list[str]:
    """The documents that pretraining reads of a file."""
    found = [""]
    for piece in documents.pieces(source_of(path, content), reading(**keys)):
        found[-1] += piece.text
        if piece.last:
            found.append("")
    return found[:-1]


def packed(content: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a", "a.txt", "a.log", "a.csv"])
@pytest.mark.parametrize("how", ["plain", "bom", "utf-16", "cr", "gz", "zst", "blank lines"])
def test_lines_of_json_objects_are_rows_under_any_name(tmp_path: Path, name: str, how: str) -> None:
    content = {
        "plain": LINES,
        "bom": b"\xef\xbb\xbf" + LINES,
        "utf-16": LINES.decode().encode("utf-16"),
        "cr": LINES.replace(b"\n", b"\r"),
        "gz": gzip.compress(LINES),
        "zst": packed(LINES, "zstd"),
        "blank lines": b"\n\n" + LINES,
    }[how]
    assert [text for text in texts(tmp_path / name, content) if text] == TEXTS


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_of_json_objects_is_rows(tmp_path: Path, name: str, indent: int | None) -> None:
    content = json.dumps(ROWS, indent=indent, ensure_ascii=False).encode()
    assert texts(tmp_path / name, content) == TEXTS
    assert texts(tmp_path / name, content, format="jsonl") == TEXTS


def test_json_objects_over_several_lines_are_rows(tmp_path: Path) -> None:
    content = "\n".join(json.dumps(row, indent=1) for row in ROWS).encode()
    assert texts(tmp_path / "a.json", content) == TEXTS
    assert texts(tmp_path / "a.jsonl", content) == TEXTS


def test_rows_of_a_list_are_reported_by_their_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("llmkit.data.readers.decode.CHUNK", 7)
    monkeypatch.setattr("llmkit.data.readers.tables.CHUNK", 7)
    source = source_of(tmp_path / "a.json", json.dumps(ROWS[:20], indent=1).encode())
    found = list(tables.spanning(source, reading()))
    assert [record.values for record in found] == ROWS[:20]
    assert [record.where for record in found] == [f"{source.path}:{2 + 4 * n}" for n in range(20)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": {"0": "a"}, "label": {"0": "b"}}', "one JSON object with 'text', 'label'"),
        ('[{"text": "a"}, {"text": "b"', "not JSON"),
        ('[{"text": "a"}, 3]', "element 2 is a JSON int"),
        ('[\n{"text": "a"},\n{"text": b}]', "not JSON"),
        ("prose", "not JSON"),
    ],
)
def test_json_that_is_not_rows_is_refused_with_its_file(
    tmp_path: Path, content: str, said: str
) -> None:
    with pytest.raises(DataError) as fault:
        texts(tmp_path / "odd.json", content.encode())
    assert said in fault.value.what
    assert "odd.json:" in fault.value.where


@pytest.mark.parametrize(
    "content",
    [
        "{} is an empty dictionary.\nMore prose.",
        '{"a": 1}\nwas one line of JSON, and then came prose.\nAnd more of it.\nAnd more.',
        "[1, 2] is a list.\n[1] Author, A. Title.\n",
        "{curly} braces\nin prose",
    ],
)
def test_prose_with_brackets_stays_prose(tmp_path: Path, content: str) -> None:
    assert texts(tmp_path / "a.txt", content.encode()) == [content]


def test_a_format_that_is_asked_for_wins_over_the_content(tmp_path: Path) -> None:
    assert texts(tmp_path / "a.json", LINES, format="txt") == [LINES.decode()]


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.txt", "a"])
def test_parquet_is_recognised_by_its_magic_bytes(tmp_path: Path, name: str) -> None:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    assert texts(tmp_path / name, file.getvalue()) == TEXTS


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.zst"])
@pytest.mark.parametrize("codec", [None, "gzip", "zstd"])
def test_compression_is_recognised_by_its_magic_bytes(
    tmp_path: Path, name: str, codec: str | None
) -> None:
    content = b"text,n\na,1\nb,2\n"
    assert texts(tmp_path / name, packed(content, codec) if codec else content) == ["a", "b"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_is_read_whatever_its_separator_line_ends_and_encoding(
    tmp_path: Path, delimiter: str, encoding: str, end: str, suffix: str
) -> None:
    rows = [["text", "n"], ["é one", "1"], ["two", "2"]]
    content = "".join(delimiter.join(row) + end for row in rows).encode(encoding)
    assert texts(tmp_path / f"a.{suffix}", content) == ["é one", "two"]


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return file.getvalue()


@pytest.mark.parametrize("name", ["data.txt", "data.csv", "data.parquet.bin", "data.jsonl", "data"])
@pytest.mark.parametrize(
    ("content", "what", "way"),
    [
        (zipped("a.txt"), "zip archive", "unpack"),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "Excel workbook", "CSV"),
        (zipped("[Content_Types].xml", "word/document.xml"), "Word document", "plain text"),
        (b"%PDF-1.7\n%\xe2\xe3", "PDF document", "pdftotext"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1" + bytes(500), "old Office", "CSV"),
        (b"BZh91AY&SY", "bzip2", "gzip"),
        (gzip.compress(bytes(257) + b"ustar\x0000", mtime=0), "tar archive", "unpack"),
        (b"\x89PNG\r\n\x1a\n", "picture", "name"),
        (random.Random(0).randbytes(5000), "binary data", "name"),
        (gzip.compress(random.Random(0).randbytes(5000), mtime=0), "binary data", "name"),
    ],
)
def test_what_holds_neither_text_nor_rows_is_refused_with_its_name_and_the_way(
    tmp_path: Path, name: str, content: bytes, what: str, way: str
) -> None:
    with pytest.raises(DataError) as fault:
        texts(tmp_path / name, content)
    assert what in fault.value.what
    assert name in fault.value.where
    assert way in fault.value.next


def test_a_table_says_the_same_as_its_documents(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a.ndjson", LINES)
    assert list(tables.texts(source, reading())) == TEXTS


@pytest.mark.parametrize("suffix", ["txt", "csv", "parquet"])
def test_a_file_whose_name_is_not_utf8_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"caf\udce9.{suffix}"
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    content = {"txt": b"plain", "csv": b"text,n\nplain,1\n", "parquet": file.getvalue()}[suffix]
    assert texts(path, content) == (TEXTS if suffix == "parquet" else ["plain"])
