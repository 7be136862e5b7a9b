"""A text, a table, and runs on them that the functions and the commands have made."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmkit
from tests.harness import Server
from tests.jobs import WORDS, tiny, write_table

MODEL = {"config": {"hidden_size": 32, "num_hidden_layers": 2}}
TRAIN = {"max_steps": 4, "global_batch_size": 8, "micro_batch_size": 4, "compile": False}
KEYS: dict[str, Any] = {
    "model": MODEL,
    "train": TRAIN,
    "tokenizer": {"vocab_size": 300},
    "data": {"block_size": 16},
    "generation": {"max_new_tokens": 4},
}
"""The keywords of a tiny pretraining; `tests.jobs.tiny` has them as arguments."""

Command = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="package")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 60 lines."""
    chance = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("".join(" ".join(chance.choices(WORDS, k=9)) + "\n" for _ in range(60)))
    return path


@pytest.fixture(scope="package")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 60 labelled rows."""
    chance = random.Random(0)
    kinds = {"good": "fine", "bad": "awful"}
    rows = [
        (f"{kinds[kind]} {' '.join(chance.choices(WORDS, k=4))} {number}", kind)
        for number in range(30)
        for kind in kinds
    ]
    return write_table(tmp_path_factory.mktemp("reviews") / "reviews.csv", rows)


@pytest.fixture(scope="package")
def command(trials: Server) -> Command:
    """Runs a command line in another process, and returns the JSON lines that it prints."""

    def run(*arguments: object) -> list[dict[str, Any]]:
        ended = trials.run(*arguments, "--json", "--quiet")
        assert ended.code == 0, ended.err
        return [json.loads(line) for line in ended.out.splitlines()]

    return run


@pytest.fixture(scope="package")
def called(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of pretraining by the function."""
    directory = tmp_path_factory.mktemp("called") / "run"
    return llmkit.pretrain(text=corpus, output_dir=directory, quiet=True, **KEYS)


@pytest.fixture(scope="package")
def commanded(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory, command: Command
) -> dict[str, Any]:
    """The result of the same pretraining by the command."""
    directory = tmp_path_factory.mktemp("commanded") / "run"
    keys = tiny("train.max_steps=4")
    return command("pretrain", "--text", corpus, "--output-dir", directory, *keys)[0]


@pytest.fixture(scope="package")
def classifier(
    reviews: Path, called: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The result of fine-tuning that model by the function."""
    return llmkit.finetune(
        csv=reviews,
        model=called["run_dir"],
        output_dir=tmp_path_factory.mktemp("classifier") / "run",
        train={"max_steps": 6, "compile": False},
        quiet=True,
    )
