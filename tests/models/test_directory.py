"""Which names are paths, and what is said of one that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.errors import InputNotFound
from llmkit.models import directory
from llmkit.storage import paths


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with two run directories."""
    for name in ("shake", "poems"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.mark.parametrize(
    "name", ["runs/x", "./x", "../x", "/x", "~/x", "a/b/c", "shake/", "models/x", "."]
)
def test_what_can_only_be_a_path_is_one(runs: Path, name: str) -> None:
    (runs.parent / "models").mkdir()
    assert paths.looks_like_path(name)
    if name != ".":
        with pytest.raises(InputNotFound):
            directory.locate_model(name)


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2.5-0.5B", "openai-community/gpt2"])
def test_what_may_be_on_the_hub_is_not_a_path(runs: Path, name: str) -> None:
    assert not paths.looks_like_path(name)
    assert directory.locate_model(name) == name


def test_runs_is_ours_even_before_there_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths.looks_like_path("runs/first")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("runs/shak", "runs/shake"),
        ("./rums/poms", "runs/poems"),
        ("runs/shak/", "runs/shake"),
        ("runs/shak/finl", "runs/shake/final"),
    ],
)
def test_the_nearest_directory_is_named(runs: Path, name: str, meant: str) -> None:
    (runs / "shake" / "final").mkdir()
    with pytest.raises(InputNotFound) as fault:
        directory.locate_model(name)
    assert f"did you mean {meant}?" == fault.value.next


def test_a_file_is_answered_with_its_directory(runs: Path) -> None:
    (runs / "shake" / "model.safetensors").touch()
    with pytest.raises(InputNotFound, match="is a file") as fault:
        directory.locate_model("runs/shake/model.safetensors")
    assert "runs/shake" in fault.value.next
