"""Whole runs of the command line, on small text made here."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli import app
from tests.harness import Server
from tests.jobs import WORDS


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


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs a command line in this process; the JSON that it prints, or how it failed."""

    def run(*arguments: object) -> dict[str, Any]:
        code = app.run_command([*map(str, arguments), "--json"])
        said = capsys.readouterr()
        return {**json.loads(said.out or "{}"), "code": code, "said": said.err}

    return run
