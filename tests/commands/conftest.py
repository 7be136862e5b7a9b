"""Whole runs of the command line, on small text made here."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Server

TINY = (
    "model.config.hidden_size=32", "model.config.num_hidden_layers=2",
    "tokenizer.vocab_size=300", "data.block_size=16", "train.global_batch_size=8",
    "train.micro_batch_size=4", "train.compile=false", "generation.max_new_tokens=4",
)  # fmt: skip


def tiny(*changes: str) -> list[str]:
    """Overrides for a tiny model, some of them changed."""
    keys = {change.partition("=")[0] for change in changes}
    return [*(own for own in TINY if own.partition("=")[0] not in keys), *changes]


WORDS = "the cat sat on a mat and saw how far the little dog had run away from home".split()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 60 one-line documents."""
    chance = random.Random(0)
    lines = (" ".join(chance.choices(WORDS, k=chance.randint(3, 30))) for _ in range(60))
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def environment(trials: Server) -> dict[str, str]:
    """That of the trials: one thread, a cache of the tests' own, and no hub."""
    return trials.environment


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def llmkit(trials: Server) -> Run:
    """Runs a command line to its end, in one process or several."""

    def run(*arguments: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
        where = {"directory": str(Path.cwd())}
        if processes == 1:
            started = [trials.start(*arguments, **where)]
        else:
            started = trials.start_processes(processes, *arguments, **where)
        codes, said, told = zip(*(trial.end(patience=240) for trial in started), strict=True)
        return subprocess.CompletedProcess(
            arguments, max(codes, key=abs), "".join(said), "".join(told)
        )

    return run


@pytest.fixture(scope="session")
def torchrun(environment: dict[str, str]) -> Run:
    """Runs a command line to its end in two processes that torchrun starts."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
        command = [sys.executable, *launcher, "-m", "llmkit", *map(str, arguments)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=240, check=False
        )

    return run
