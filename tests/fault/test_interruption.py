"""Runs that are killed, stopped or told to end, at any moment (F01 to F09, F50, F63)."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.harness import STRACE, Server, contents, traced

from . import runs
from .runs import STEPS, Job

KILLS = 4
"""Kills in a row, at random moments, before a run is let finish; the sweep has hundreds."""


@pytest.fixture(scope="module", params=["pretrain", "finetune"])
def job(request: pytest.FixtureRequest, jobs: dict[str, Job]) -> Job:
    return jobs[request.param]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    trials: Server, job: Job, reference: dict[str, str], tmp_path: Path, seed: int
) -> None:
    chance, run = random.Random(seed), tmp_path / "run"
    for _ in range(KILLS):
        runs.kill(trials, job.at(run), run, chance.uniform(0.05, 1.2))
    ended = trials.run(*job.at(run))
    assert ended.code == 0, ended.err
    assert runs.result(run) == reference
    assert runs.leftovers(run) == []


def test_a_run_that_is_stopped_at_every_step_ends_with_the_same_bytes(
    trials: Server, job: Job, reference: dict[str, str], tmp_path: Path
) -> None:
    """The last step, and the end of an epoch, among them."""
    run, numbers = tmp_path / "run", (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    for step in range(1, STEPS):
        if max(runs.committed(run), default=0) >= step:
            continue  # the signal before this one came a moment after its step
        trial, number = trials.start(*job.at(run)), numbers[step % 3]
        trial.until(f"step {step}/{STEPS}")
        ended = trial.end(number)
        assert ended.code == (130 if number == signal.SIGINT else 75), ended.err
        for part in ("error[", "kept:  ", "next:  run the same command again"):
            assert part in ended.err
        saved = runs.committed(run)[-1]
        assert saved in (step, step + 1)
        if saved < STEPS:  # after the last step there is nothing left to interrupt
            assert "kept:  checkpoint" in ended.err
    ended = trials.run(*job.at(run))
    assert ended.code == 0, ended.err
    assert runs.result(run) == reference


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_at_any_moment_is_answered_and_loses_nothing(
    trials: Server, job: Job, reference: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    chance, run = random.Random(int(number)), tmp_path / "run"
    for _ in range(3):
        trial = trials.start(*job.at(run))
        trial.listen(chance.uniform(0.0, 1.0))
        before = runs.committed(run)
        ended = trial.end(number) if trial.alive() else trial.end()
        assert ended.code in (0, 130 if number == signal.SIGINT else 75), ended
        assert "Traceback" not in ended.err
        assert max(runs.committed(run), default=0) >= max(before, default=0)
    ended = trials.run(*job.at(run))
    assert ended.code == 0, ended.err
    assert runs.result(run) == reference


@pytest.mark.skipif(STRACE is None, reason="needs strace")
@pytest.mark.parametrize("place", [9, 14, 19])
def test_a_signal_in_the_middle_of_a_save_lets_it_end_and_saves_once(
    trials: Server, job: Job, reference: dict[str, str], tmp_path: Path, place: int
) -> None:
    """The signal comes with a flush to the disk, of which a checkpoint needs about ten."""
    run = tmp_path / "run"
    trial = trials.start(*job.at(run), halted=True)
    with traced(trial, "-e", f"inject=fsync:signal=SIGTERM:when={place}", "-o", "/dev/null"):
        ended = trial.end()
    assert ended.code == 75, ended.err
    assert "stopped by SIGTERM" in ended.err
    assert runs.leftovers(run) == []
    ended = trials.run(*job.at(run))
    assert ended.code == 0, ended.err
    assert runs.result(run) == reference


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_text_whose_tokenising_was_broken_off_is_tokenised_to_the_same_bytes(
    trials: Server, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    text = tmp_path / "long.txt"
    chance = random.Random(0)
    text.write_text("".join(f"{chance.choice(runs.WORDS)} {n}\n" for n in range(50_000)))
    command = (
        "pretrain", "--text", str(text), *runs.SMALL[:3], "train.max_steps=1",
        "data.block_size=16", "--output-dir", str(tmp_path / "run"),
    )  # fmt: skip
    caches = [tmp_path / name for name in ("broken", "clean")]
    trial = trials.start(*command, environment={"LLMKIT_CACHE": str(caches[0])})
    trial.until("tokenizer: 300 tokens")
    ended = trial.end(number)
    assert ended.code == code, ended.err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    if code == 75:
        assert "stopped by SIGTERM" in ended.err
    for cache in caches:
        environment = {"LLMKIT_CACHE": str(cache)}
        ended = trials.run(*command, environment=environment)
        assert ended.code == 0, ended.err
    for cache in caches:  # compiled code, which no text decides
        shutil.rmtree(cache / "kernels", ignore_errors=True)
    broken, clean = (contents(cache) for cache in caches)
    assert broken == clean


def test_a_second_ctrl_c_ends_the_process_at_once(trials: Server) -> None:
    ended = trials.run(function="press", keywords={"number": signal.SIGINT})
    assert (ended.code, ended.err) == (130, "")


def test_a_second_sigterm_changes_nothing(trials: Server) -> None:
    ended = trials.run(function="press", keywords={"number": signal.SIGTERM})
    assert ended.code == 75
    assert "stopped by SIGTERM" in ended.err


@pytest.mark.slow
def test_a_signal_while_compiling_is_answered(
    trials: Server, jobs: dict[str, Job], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trial = trials.start(*jobs["pretrain"].at(run, "train.compile=true"))
    trial.until("compile true")
    ended = trial.end(signal.SIGTERM, patience=200)
    assert ended.code == 75, ended.err
