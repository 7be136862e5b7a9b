import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.schema import DataConfig
from llmkit.data.readers import ranges
from llmkit.data.readers.decode import Reading
from llmkit.data.readers.files import Source, find
from llmkit.data.text.documents import Piece, pieces


def documents(source: Source, data: DataConfig) -> list[str]:
    reading = Reading(ranges.settings_of_range(source, data), lambda n_bytes: None)
    found, text = list[str](), ""
    for piece in pieces(source, reading):
        assert isinstance(piece, Piece)
        text += piece.text
        if piece.last:
            found.append(text)
            text = ""
    return found


def cut(path: Path, data: DataConfig, size: int) -> tuple[list[str], list[str], int]:
    """The documents of a file, those of its ranges, and the number of ranges."""
    [source] = find([str(path)], "data.train_files")
    groups = ranges.unit_sources([source], data, size)
    parts = [part for group in groups for part in group]
    assert [part.begin for part in parts[1:]] == [part.end for part in parts[:-1]]
    several = [document for part in parts for document in documents(part, data)]
    return documents(source, data), several, len(parts)


SETTINGS = st.sampled_from(
    [
        {"document": "line"},
        {"document": "blank_line"},
        *({"document_separator": mark} for mark in ("\n", "\n\n", "aa", "\n-\n", "é\n")),
    ]
)


@given(
    text=st.text("aaa\n\n- \té你", min_size=1, max_size=200).filter(str.strip),
    settings=SETTINGS,
    size=st.integers(1, 40),
)
def test_the_ranges_of_a_text_hold_its_documents(
    tmp_path_factory: pytest.TempPathFactory, text: str, settings: dict[str, str], size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "text.txt"
    path.write_text(text, newline="")
    whole, several, _ = cut(path, DataConfig().changed(format="txt", **settings), size)
    assert several == whole


def test_the_ranges_of_json_lines_have_the_column_of_the_first_row(tmp_path: Path) -> None:
    rows = [{"body": f"text {number}"} for number in range(100)]
    rows[50:] = [{"text": "other", **row} for row in rows[50:]]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, several, n_ranges = cut(path, DataConfig(), 300)
    assert n_ranges > 5
    assert several == whole == [f"text {number}" for number in range(100)]


def test_files_that_only_a_reader_can_cut_stay_whole(tmp_path: Path) -> None:
    text = "a line\n" * 1000
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "wide.txt").write_text(text, encoding="utf-16")
    (tmp_path / "table.csv").write_text("text,n\n" + '"a\nb",1\n' * 1000)
    (tmp_path / "text.txt").write_text(text)
    for name in ("packed.txt.gz", "wide.txt", "table.csv"):
        assert cut(tmp_path / name, DataConfig().changed(document="line"), 100)[2] == 1
    assert cut(tmp_path / "text.txt", DataConfig(), 100)[2] == 1
    assert cut(tmp_path / "text.txt", DataConfig().changed(document="line"), 100)[2] > 50


def test_small_files_are_read_together(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("x" * 10)
    groups = ranges.unit_sources(find([str(tmp_path)], "data.train_files"), DataConfig(), 35)
    assert [len(group) for group in groups] == [3, 3, 3, 1]
    assert [part.path for group in groups for part in group] == sorted(tmp_path.iterdir())
