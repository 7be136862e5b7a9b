"""Exports that are broken off: what they write stands whole under its name, or not at all."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from llmkit.storage import atomic
from tests.harness import Server

from .runs import Job

NAMES = {"gguf": "model.gguf", "onnx": "model", "safetensors": "model", "peft": "model"}


@pytest.fixture(scope="module")
def finished(
    trials: Server, jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The runs to export, by format."""
    folder = tmp_path_factory.mktemp("runs")
    text = jobs["pretrain"].at(folder / "text", "train.max_steps=1", "model.architecture=llama")
    lora = ("finetune", "--model", folder / "text", *jobs["finetune"].arguments[1:3])
    keys = ("train.max_steps=1", "model.lora.r=2", "train.compile=false", "-o", folder / "lora")
    for line in (text, (*lora, *keys)):
        ended = trials.run(*line)
        assert ended.code == 0, ended.err
    return dict.fromkeys(NAMES, folder / "text") | {"peft": folder / "lora"}


@pytest.mark.parametrize("format", NAMES)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_export_that_is_broken_off_while_it_writes_leaves_nothing_half_written(
    trials: Server,
    finished: dict[str, Path],
    tmp_path: Path,
    format: str,
    number: signal.Signals,
    code: int,
) -> None:
    made = tmp_path / NAMES[format]
    line = ("export", "--model", finished[format], "--format", format, "--output", made)
    trial = trials.start(*line)
    trial.until_there(tmp_path, ".tmp-*")
    ended = trial.end(number)
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    left = [path.name for path in tmp_path.iterdir()]
    assert (left if code > 0 else [name for name in left if name[:5] != ".tmp-"]) == []
    if code > 0:
        assert "kept: " in ended.err
        return
    ended = trials.run(*line)
    assert ended.code == 0, ended.err
    assert [path.name for path in tmp_path.iterdir()] == [made.name]
    if made.is_dir():
        atomic.verify(made)
