"""Directories of default names: one for each request, whoever asks at the same time."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.storage import numbered


def claim(parent: Path, number: int, again: bool = False) -> str:
    facts = {"request": {"number": number}}
    return numbered.claim(parent, "run", "run.json", facts, again).name


def test_processes_that_start_at_once_share_a_directory_only_for_one_request(
    tmp_path: Path,
) -> None:
    asked = [number % 5 for number in range(40)]
    with ProcessPoolExecutor(8, mp_context=get_context("fork")) as pool:
        for attempt in range(20):  # a race is rare in one
            runs = tmp_path / str(attempt)
            names = list(pool.map(claim, [runs] * 40, asked))
            assert len({*zip(asked, names, strict=True)}) == len(set(names)) == 5
            for number, name in zip(asked, names, strict=True):
                record = json.loads((runs / name / "run.json").read_text())
                assert record["request"] == {"number": number}
            assert sorted(path.name for path in runs.iterdir()) == [f"run-{n}" for n in range(1, 6)]


def test_a_new_number_follows_all_that_are_in_use(tmp_path: Path) -> None:
    assert numbered.next_free(tmp_path / "missing", "run") == tmp_path / "missing" / "run-1"
    for name in ("run-2", "RUN-7", "run-07", "run-9-old", "other-12", "run-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "run-8").write_text("a file of the user")
    assert numbered.next_free(tmp_path, "run") == tmp_path / "run-9"
    assert [claim(tmp_path, 1), claim(tmp_path, 1), claim(tmp_path, 1, again=True)] == [
        "run-9", "run-9", "run-10",
    ]  # fmt: skip
    (tmp_path / "run-11").mkdir()
    (tmp_path / "run-11" / "run.json").write_text("[damaged")
    assert claim(tmp_path, 1) == "run-10"


@given(st.text(max_size=200))
def test_any_text_becomes_part_of_a_file_name(text: str) -> None:
    name = numbered.safe(text)
    assert "/" not in name
    assert name.isprintable()
    assert not name.startswith((".", "-"))
    assert len(name.encode()) <= numbered.MAX_NAME_BYTES
    assert numbered.safe(name) == name


@pytest.mark.parametrize("text", ["", "...", "🙂", "/", " \n\t", "\udcff"])
def test_a_text_without_letters_gives_no_name(text: str) -> None:
    assert numbered.safe(text) == ""
