"""Commands that only read a model, broken off: predict, generate and evaluate (F01, F06, F09)."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests.harness import Ended, Server, Trial

from . import runs
from .runs import Job

ROWS = 20_000
"""More than two windows of rows."""

CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130, signal.SIGKILL: -9}


@pytest.fixture(scope="module")
def classifier(
    trials: Server, jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("classifier") / "run"
    assert trials.run(*jobs["finetune"].at(run, "train.max_steps=1")).code == 0
    return run


@pytest.fixture(scope="module")
def writer(trials: Server, jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pretrain."""
    run = tmp_path_factory.mktemp("writer") / "run"
    assert trials.run(*jobs["pretrain"].at(run, "train.max_steps=1")).code == 0
    return run


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chance, path = random.Random(0), tmp_path_factory.mktemp("rows") / "rows.csv"
    texts = (" ".join(chance.choices(runs.WORDS, k=chance.randint(1, 6))) for _ in range(ROWS))
    path.write_text("id,text\n" + "".join(f"{n},{text}\n" for n, text in enumerate(texts)))
    return path


def stopped(trial: Trial, number: signal.Signals) -> Ended:
    """Stops a trial, and looks at its code and words."""
    ended = trial.end(number)
    assert ended.code == CODES[number], ended.err
    if number != signal.SIGKILL:
        assert "next:  run the same command again" in ended.err
    return ended


@pytest.fixture(scope="module", params=["jsonl", "csv"])
def labelled(
    request: pytest.FixtureRequest,
    trials: Server,
    classifier: Path,
    rows: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The predictions of a job that nothing has broken off."""
    path = tmp_path_factory.mktemp("labelled") / f"out.{request.param}"
    ended = trials.run("predict", "--model", classifier, "--csv", rows, "--output", path)
    assert ended.code == 0, ended.err
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_predictions_that_were_interrupted_resume_to_the_same_bytes(
    trials: Server,
    classifier: Path,
    rows: Path,
    labelled: Path,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    output = tmp_path / labelled.name
    command = ("predict", "--model", classifier, "--csv", rows, "--output", output)
    trial = trials.start(*command)
    trial.until_there(tmp_path, ".*.note.json")
    stopped(trial, number)
    assert not output.exists()
    ended = trials.run(*command)
    assert ended.code == 0, ended.err
    assert "resuming after" in ended.err
    assert output.read_bytes() == labelled.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_predictions_of_other_rows_are_not_resumed(
    trials: Server, classifier: Path, rows: Path, tmp_path: Path
) -> None:
    mine, output = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    mine.write_bytes(rows.read_bytes())
    command = ("predict", "--model", classifier, "--csv", mine, "--output", output)
    trial = trials.start(*command)
    trial.until_there(tmp_path, ".*.note.json")
    stopped(trial, signal.SIGTERM)
    mine.write_text("id,text\n1,the cat\n")
    ended = trials.run(*command)
    assert ended.code == 0, ended.err
    assert "starting over" in ended.err
    assert output.read_text().count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_waits_for_a_pipe_can_be_stopped(
    trials: Server, classifier: Path, tmp_path: Path, number: signal.Signals
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    other_end = os.open(pipe, os.O_RDWR)
    trial = trials.start("predict", "--model", classifier, stdin=str(pipe))
    os.write(other_end, b"the cat\n")
    trial.until("2 labels")
    stopped(trial, number)
    os.close(other_end)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_texts_that_were_interrupted_resume_to_the_same_bytes(
    trials: Server, writer: Path, tmp_path: Path, number: signal.Signals
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"the cat {n}\n" for n in range(60)))
    settings = ("generation.max_new_tokens=12", "generation.micro_batch_size=2")
    command = ("generate", "--model", writer, "--prompts-file", prompts, *settings, "--output")
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert trials.run(*command, whole).code == 0
    trial = trials.start(*command, broken)
    trial.until_there(tmp_path, broken.name)
    while broken.stat().st_size == 0:
        assert trial.listen(0.01)
    stopped(trial, number)
    assert trials.run(*command, broken).code == 0
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_an_evaluation_that_was_broken_off_leaves_nothing(
    trials: Server, writer: Path, tmp_path: Path, number: signal.Signals
) -> None:
    chance, text, cache = random.Random(0), tmp_path / "text.txt", tmp_path / "cache"
    text.write_text("".join(" ".join(chance.choices(runs.WORDS, k=9)) + "\n" for _ in range(9_000)))
    files = {name: tmp_path / name for name in ("result.json", "samples.jsonl", "page.html")}
    command = (
        "evaluate", "--model", writer, "--text", text, "data.document=line", "--quiet",
        "evaluation.stride=1", "--output", files["result.json"],
        "--log-samples", files["samples.jsonl"], "--per-token", files["page.html"],
    )  # fmt: skip
    trial = trials.start(*command, environment={"LLMKIT_CACHE": str(cache)})
    trial.until_there(cache, "*/*")
    stopped(trial, number)
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "cache"}
    assert [path.name for path in cache.rglob(".tmp*")] == []
