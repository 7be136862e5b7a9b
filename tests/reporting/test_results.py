"""Files of an evaluation: whole, readable, and never over someone else's."""

from __future__ import annotations

import json

import pytest

from llmkit.errors import WriteError
from llmkit.reporting import results

FIGURES = {"command": "evaluate", "tokens": 3, "by_domain": [{"domain": "a", "nll": 1.5}]}


@pytest.mark.parametrize("name", ["result.json", "result.md", "rows.jsonl"])
def test_what_an_evaluation_wrote_may_be_written_again(tmp_path, name) -> None:
    path = tmp_path / "new" / name
    results.check_output_files([str(path), None])
    if name == "rows.jsonl":
        results.write_lines(path, [{"row": 1}, {"row": 2}])
    else:
        results.write_result(path, FIGURES)
    results.check_output_files([str(path)])


@pytest.mark.parametrize("text", ["", "my notes\n", '{"command": "pretrain"}'])
def test_another_file_is_never_overwritten(tmp_path, text) -> None:
    path = tmp_path / "notes.md"
    path.write_text(text)
    with pytest.raises(WriteError, match="no evaluation wrote it"):
        results.check_output_files([str(path)])
    assert path.read_text() == text


def test_a_result_for_machines_is_json_and_for_people_a_table(tmp_path) -> None:
    results.write_result(tmp_path / "r.json", FIGURES)
    assert json.loads((tmp_path / "r.json").read_text()) == FIGURES
    results.write_result(tmp_path / "r.txt", FIGURES)
    text = (tmp_path / "r.txt").read_text()
    assert text.startswith("command: evaluate\ntokens: 3\n")
    assert "domain" in text
    assert "1.5" in text


def test_a_directory_that_cannot_be_made_is_told(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError):
        results.write_result(tmp_path / "file" / "r.json", FIGURES)
