"""Whole runs of the command line, each in a process of its own, on small text made here."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

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
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One thread, a cache of the tests' own, and no hub."""
    cache = str(tmp_path_factory.mktemp("cache"))
    own = {"OMP_NUM_THREADS": "1", "LLMKIT_CACHE": cache, "HF_HUB_OFFLINE": "1"}
    return {**{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}, **own}


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def llmkit(environment: dict[str, str]) -> Run:
    """Runs a command line to its end; several processes under torchrun."""

    def run(*arguments: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
        command = [*launcher(processes), *map(str, arguments)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=240, check=False
        )

    return run


@pytest.fixture(scope="session")
def start(environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """Starts a command line and comes back at once."""

    def run(*arguments: object, processes: int = 1) -> subprocess.Popen[str]:
        command = [*launcher(processes), *map(str, arguments)]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return run


def launcher(processes: int) -> Sequence[str]:
    if processes == 1:
        return [sys.executable, "-m", "llmkit"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *torchrun, "-m", "llmkit"]


def wait_for_lines(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Returns when a file has this many lines, or the process has ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.01)


def kill(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Sends a signal; the exit code and stderr."""
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    return process.returncode, said
