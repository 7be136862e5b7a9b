"""Inputs that are too large, have changed, do not belong together, or do not answer (F43, F49, F52,
F53, F59)."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from llmkit.models import tokenizer as tokenizers
from tests.harness import SURROUNDINGS, Server

from . import runs
from .runs import STEPS, Job
from .test_hostile import harmless  # noqa: F401
from .test_processes import used

ROOM = 250_000_000
"""Bytes that a trial may take beside the libraries."""


def bomb(path: Path, head: bytes, megabytes: int) -> Path:
    """A small file that unpacks to a line of so many megabytes."""
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
        packed.write(head)
        for _ in range(megabytes):
            packed.write(b"ab " * 350_000)
    assert path.stat().st_size < 1_000_000
    return path


@pytest.mark.parametrize(
    ("command", "name", "head", "code"),
    [
        ("pretrain", "line.txt.zst", b"", 0),
        ("pretrain", "line.jsonl.zst", b'{"text": "', 65),
        ("pretrain", "field.csv.zst", b'text\n"', 65),
        ("finetune", "field.csv.zst", b'text,label\na,x\n"', 65),
        ("finetune", "line.csv.zst", b"text,label\na,x\n", 65),
    ],
)
def test_a_line_of_hundreds_of_megabytes_takes_little_memory(
    trials: Server, tmp_path: Path, command: str, name: str, head: bytes, code: int
) -> None:
    path = bomb(tmp_path / name, head, 250)
    flag = "--text" if command == "pretrain" else "--csv"
    limits = {"RLIMIT_AS": used(trials.popen.pid) + ROOM}
    keys = runs.SMALL if command == "pretrain" else ("data.label_column=1",)
    keys += ("data.text_column=0",) if name.endswith("csv.zst") else ()
    ended = trials.run(command, flag, path, *keys, "--dry-run", limits=limits)
    assert ended.code == code, ended.err
    if code:
        assert "longer than" in ended.err
        assert name in ended.err


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_data_that_changed_since_are_refused_and_nothing_is_touched(
    trials: Server, jobs: dict[str, Job], tmp_path: Path, command: str
) -> None:
    given = Path(jobs[command].arguments[2])
    mine, run = tmp_path / given.name, tmp_path / "run"
    shutil.copy(given, mine)
    parts = [str(mine) if part == str(given) else part for part in jobs[command].arguments]
    job = Job(tuple(parts))
    trial = trials.start(*job.at(run))
    trial.until(f"step 4/{STEPS}")
    assert trial.end(signal.SIGTERM).code == 75
    before = runs.contents(run / "checkpoints")
    mine.write_text(given.read_text().replace("cat", "cow", 1))  # of the same size
    ended = trials.run(*job.at(run))
    assert ended.code == 78, ended.err
    assert "training" in ended.err
    assert runs.contents(run / "checkpoints") == before
    shutil.copy(given, mine)
    assert trials.run(*job.at(run)).code == 0


@pytest.mark.parametrize("command", ["pretrain", "finetune", "generate"])
def test_a_tokenizer_with_more_ids_than_the_model_has_is_refused(
    trials: Server,
    jobs: dict[str, Job],
    harmless: Path,  # noqa: F811
    tmp_path: Path,
    command: str,
) -> None:
    model = Path(shutil.copytree(harmless, tmp_path / "model"))
    larger = tokenizers.load_tokenizer(str(harmless))
    larger.add_tokens([f"<{number}>" for number in range(9)])
    larger.save_pretrained(model)
    text, table = (jobs[name].arguments[2] for name in ("pretrain", "finetune"))
    prompt = "the cat <8>"
    given = {
        "pretrain": ("--text", text, "train.max_steps=1", "data.block_size=16"),
        "finetune": ("--csv", table, "train.max_steps=1"),
        "generate": ("--prompt", prompt),
    }
    run = () if command == "generate" else ("--output-dir", tmp_path / "run")
    ended = trials.run(command, "--model", model, *given[command], *run)
    assert ended.code == 65, ended.err
    assert "embeddings" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--prompt", "a", "generation.max_new_tokens=0"), 78),
        (("--prompt", "a", "generation.max_new_tokens=-1"), 78),
        (("--prompt", "a", "generation.max_new_tokens=1e9"), 78),
        (("--prompt", "the cat " * 99), 65),
        (("--prompt", ""), 0),
    ],
)
def test_a_prompt_or_a_length_that_cannot_be_is_reported(
    trials: Server,
    harmless: Path,  # noqa: F811
    arguments: tuple[str, ...],
    code: int,
) -> None:
    ended = trials.run("generate", "--model", harmless, *arguments)
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err


@contextmanager
def hub(listens: bool) -> Iterator[str]:
    """The address of a hub where nobody listens, or where nobody ever answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if listens:
            listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["--model", "--text"])
@pytest.mark.parametrize("listens", [False, True])
def test_a_hub_that_is_silent_or_not_there_is_reported_soon(
    jobs: dict[str, Job], tmp_path: Path, listens: bool, what: str
) -> None:
    given = {"--text": jobs["pretrain"].arguments[2]}
    given[what] = "nobody/nothing" if what == "--model" else "hub:nobody/nothing"
    pairs = (part for pair in given.items() for part in pair)
    command = ("pretrain", *pairs, "train.max_steps=1", "--output-dir", str(tmp_path / "run"))
    with hub(listens) as address:
        own = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        ended = subprocess.run(
            [sys.executable, "-m", "llmkit", *command],
            env={**os.environ, **SURROUNDINGS, **own},
            capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
    assert ended.returncode == 69, ended.stderr
    assert "nobody/nothing" in ended.stderr
    assert "Traceback" not in ended.stderr
