"""The starter configs: each loads as it is and filled in, and keeps its comments."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.config.load import load_config
from llmkit.config.starters import STARTERS, fill_domains, fill_in, starter_text
from llmkit.config.yaml12 import read_yaml


@pytest.mark.parametrize("job", STARTERS)
def test_a_starter_filled_with_files_is_a_config_of_its_command(job: str, tmp_path: Path) -> None:
    starter, path = STARTERS[job], tmp_path / "mine.yaml"
    values = {"model.name_or_path": "runs/my base"}
    if starter.files == "data.train_files":
        values["data.train_files"] = ["a b.txt", "c: d.txt"]
    text = fill_in(starter_text(job), values)
    if job in ("mixture", "experts"):
        text = fill_domains(text, {"poems": "poems dir", "code": "code"})
    path.write_text(text)
    config = load_config(starter.command, path, []).config
    assert config.model.name_or_path == "runs/my base"
    if "data.train_files" in values:
        assert [str(each) for each in config.data.train_files] == values["data.train_files"]
    if job in ("mixture", "experts"):
        assert list(config.data.mixture) == ["poems", "code"]


@pytest.mark.parametrize("job", STARTERS)
def test_filling_in_keeps_every_comment_and_other_line(job: str) -> None:
    text = starter_text(job)
    filled = fill_in(text, {"data.text_column": "review"})
    lost = [line for line in text.split("\n") if line not in filled.split("\n")]
    assert all("text_column" in line for line in lost)
    assert fill_in(filled, {"data.text_column": "review"}) == filled


@pytest.mark.parametrize(
    "value", ["yes", "1.0", "a # b", "null", "x: y", "é", "[1]", True, 3, ["a", "b c"]]
)
def test_a_value_comes_back_as_it_was_given(value: object, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = fill_in("data: # section\n  a: 1 # first\nseed: 0\n", {"data.a": value, "data.b": value})
    path.write_text(text)
    assert read_yaml(path).value["data"] == {"a": value, "b": value}
