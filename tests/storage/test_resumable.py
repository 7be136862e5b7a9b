"""A file of results: whole lines, one writer, one set of settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.errors import ConfigError, DataError, RunBusy, WriteError
from llmkit.storage import outputs, resumable


def test_a_torn_last_line_is_cut_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.jsonl"
    with resumable.open_result_lines(path, {"a": 1}) as results:
        results.add({"n": 0})
        results.add({"n": 1, "text": "line\u2028break"})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with resumable.open_result_lines(path, {"a": 1}) as results:
            for n in range(len(results.done), 2):
                results.add({"n": n, "text": "line\u2028break"} if n else {"n": n})
        assert path.read_bytes() == whole


def test_other_settings_are_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with resumable.open_result_lines(path, {"a": 1}) as results:
        results.add({"n": 0})
    before = path.read_bytes()
    with (
        pytest.raises(ConfigError, match="a was 1, is now 2"),
        resumable.open_result_lines(path, {"a": 2}),
    ):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["[1]", "null", "{", "[" * 100_000, "\0"])
def test_damaged_settings_are_refused_and_the_results_stay(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "out.jsonl"
    with resumable.open_result_lines(path, {"a": 1}) as results:
        results.add({"n": 0})
    before = path.read_bytes()
    outputs.settings_of(path).write_text(damage)
    with pytest.raises(DataError, match="cannot read the settings"):
        resumable.check_result_settings(path, {"a": 1})
    assert path.read_bytes() == before


def test_a_file_that_is_not_ours_is_never_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("precious\n")
    with (
        pytest.raises(WriteError, match="llmkit did not create it"),
        resumable.open_result_lines(path, {}),
    ):
        pass
    with (
        pytest.raises(WriteError, match="is a directory"),
        resumable.open_result_lines(tmp_path, {}),
    ):
        pass
    assert path.read_text() == "precious\n"


def test_two_processes_do_not_write_the_same_results(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with (
        resumable.open_result_lines(path, {}),
        pytest.raises(RunBusy),
        resumable.open_result_lines(path, {}),
    ):
        pass


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with resumable.open_result_lines(path, {}) as results:
        results.add({"n": 0})
    path.write_bytes(path.read_bytes() + b"{\n" + json.dumps({"n": 2}).encode() + b"\n")
    with pytest.raises(DataError) as fault, resumable.open_result_lines(path, {}):
        pass
    assert fault.value.where == f"{path}:2"
