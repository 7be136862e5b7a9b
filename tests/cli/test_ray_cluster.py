"""On a Ray cluster the runs of a sweep have the results that they have alone."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.cli import app
from tests.harness import Server
from tests.jobs import WORDS, tiny

pytest.importorskip("ray")

KEYS = (*tiny(), "train.max_steps=8", "train.logging_steps=1", "train.precision=fp32")


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(trials: Server) -> Iterator[str]:
    """The address of a cluster of this machine."""
    dashboard, port = free_port(), free_port()
    begin = f"start --head --port {port} --dashboard-port {dashboard} --num-cpus 2 --block"
    options = (
        "--include-dashboard=true",
        "--disable-usage-stats",
        f"--object-store-memory={10**8}",
    )
    ray = [sys.executable, "-m", "ray.scripts.scripts", *begin.split(), *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    head = subprocess.Popen(ray, env=trials.environment, **quiet)
    deadline = time.monotonic() + 120
    while socket.socket().connect_ex(("127.0.0.1", int(dashboard))):
        assert head.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield f"http://127.0.0.1:{dashboard}"
    head.terminate()
    head.wait(60)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A directory with a text of 60 lines."""
    chance = random.Random(0)
    lines = (" ".join(chance.choices(WORDS, k=chance.randint(3, 30))) for _ in range(60))
    (tmp_path / "words.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.slow
def test_the_runs_of_a_cluster_are_those_of_one_machine(
    trials: Server, cluster: str, words: Path
) -> None:
    """A run that fails is named, and stops no other."""
    line = ("pretrain", "--text", "words.txt", *KEYS, "train.learning_rate=1e-3,1e30", "--sweep")
    found = {}
    for name, more in (("ray", ("--ray", cluster)), ("local", ())):
        ended = trials.run(*line, "-o", name, "--json", *more, directory=str(words))
        assert ended.code == 79, ended.err
        found[name] = json.loads(ended.out)
        assert "learning_rate=1e30: the loss or gradient" in found[name]["error"]["where"]
        assert [run["status"] for run in found[name]["runs"]] == ["finished", "failed"]
    one, other = (words / name / "learning_rate=1e-3" for name in found)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_sweep_that_is_stopped_has_its_jobs_save_and_continues_later(
    trials: Server, cluster: str, words: Path
) -> None:
    line = ("pretrain", "--text", "words.txt", *KEYS, "train.max_steps=300", "seed=1,2", "--sweep")
    sweep = (*line, "-o", "grid", "--ray", cluster)
    trial = trials.start(*sweep, directory=str(words))
    trial.until_there(words, "grid/seed=1/metrics.jsonl")
    ended = trial.end(signal.SIGTERM)
    assert ended.code == 75, ended.err
    assert "run the same command again to continue" in ended.err
    assert list(words.glob("grid/seed=1/checkpoints/step-*"))
    ended = trials.run(*sweep, directory=str(words))
    assert ended.code == 0, ended.err
    steps = [json.loads(line)["step"] for line in (words / "grid/seed=1/metrics.jsonl").open()]
    assert steps == sorted(steps)
    assert steps[-1] == 300


@pytest.mark.slow
def test_cleaning_and_preparing_on_a_cluster_give_the_bytes_of_one_machine(
    trials: Server, cluster: str, words: Path
) -> None:
    jobs = ("--of", "2", "--ray", cluster)
    for name, more in (("ray", jobs), ("local", ())):
        line = ("clean", "--text", "words.txt", "data.document=line", "--output", name)
        ended = trials.run(*line, *more, directory=str(words))
        assert ended.code == 0, ended.err
    for name in ("clean.json", "removed.jsonl", "text/00000.jsonl.zst"):
        assert (words / "ray" / name).read_bytes() == (words / "local" / name).read_bytes()
    prepare = ("prepare", "--text", "local", "tokenizer.vocab_size=300", "--json")
    made = [
        trials.run(
            *prepare,
            *more,
            directory=str(words),
            environment={"LLMKIT_CACHE": str(words / f"cache-{len(more)}")},
        )
        for more in (jobs, ())
    ]
    assert [ended.code for ended in made] == [0, 0], made[0].err
    assert json.loads(made[0].out)["hash"] == json.loads(made[1].out)["hash"]


def test_an_address_where_nobody_answers_is_named(
    words: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(words)
    address = f"http://127.0.0.1:{free_port()}"
    line = ("pretrain", "--text", "words.txt", "seed=1,2", "--sweep", "--ray", address)
    assert app.run_command(line) == 71
    assert f"--ray {address}" in capsys.readouterr().err
    assert [each.name for each in words.iterdir()] == ["words.txt"]
