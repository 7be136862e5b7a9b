"""Disks that are full, read-only or not there (F15, F16, F18 to F21), and streams that are."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import pytest

from llmkit.training import checkpoint
from tests.harness import STRACE, Server, traced

from . import runs
from .runs import STEPS, Job

FILE_BYTES = 60_000
"""Less than a checkpoint's weights, more than everything else that a run writes."""


def finish(trials: Server, job: Job, run: Path, reference: dict[str, str]) -> None:
    """The same command, its disk in order again, ends as if nothing had happened."""
    ended = trials.run(*job.at(run))
    assert ended.code == 0, ended.err
    assert runs.result(run) == reference
    assert runs.leftovers(run) == []


def test_training_continues_when_a_checkpoint_finds_no_room(
    trials: Server, job: Job, reference: dict[str, str], tmp_path: Path
) -> None:
    trial = trials.start(*job.at(tmp_path / "run"), limits={"RLIMIT_FSIZE": FILE_BYTES})
    trial.until("warning: checkpoint not saved, training continues")
    trial.limit(resource.RLIMIT_FSIZE, -1)
    ended = trial.end()
    assert ended.code == 0, ended.err
    assert "step-0000000003: File too large" in ended.err
    assert "bytes are free" in ended.err
    assert runs.result(tmp_path / "run") == reference
    assert runs.leftovers(tmp_path / "run") == []


def test_three_failed_checkpoints_in_a_row_end_the_run(
    trials: Server, job: Job, reference: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = trials.run(*job.at(run, "train.save_steps=2"), limits={"RLIMIT_FSIZE": FILE_BYTES})
    assert ended.code == 73
    assert ended.err.count("training continues") == 2
    for part in ("where:", "step-0000000006", "kept:", "next:  free some space"):
        assert part in ended.err
    assert runs.committed(run) == []
    assert runs.leftovers(run) == []
    finish(trials, job, run, reference)


def test_a_last_checkpoint_that_finds_no_room_ends_the_run_and_leaves_the_one_before(
    trials: Server, job: Job, reference: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trial = trials.start(*job.at(run))
    trial.until(f"step 9/{STEPS}")
    trial.limit(resource.RLIMIT_FSIZE, FILE_BYTES)
    ended = trial.end()
    assert ended.code == 73, ended.err
    assert set(runs.committed(run)) <= {3, 6, 9}
    assert checkpoint.newest(run / "checkpoints", print) is not None
    assert not (run / "final").exists()
    finish(trials, job, run, reference)


def test_metrics_that_find_no_room_end_the_run_with_whole_lines(
    trials: Server, job: Job, reference: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trial = trials.start(*job.at(run))
    trial.until(f"step 4/{STEPS}")
    trial.limit(resource.RLIMIT_FSIZE, (run / "metrics.jsonl").stat().st_size + 50)
    ended = trial.end()
    assert ended.code == 73, ended.err
    assert "metrics.jsonl" in ended.err
    lines = (run / "metrics.jsonl").read_text()
    assert lines.endswith("\n")
    assert all(json.loads(line) for line in lines.splitlines())
    finish(trials, job, run, reference)


def test_metrics_on_a_full_device_end_the_run(
    trials: Server, job: Job, reference: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trial = trials.start(*job.at(run))
    trial.until(f"step 4/{STEPS}")
    assert trial.end(signal.SIGTERM).code == 75
    metrics, aside = run / "metrics.jsonl", tmp_path / "aside"
    metrics.rename(aside)
    metrics.symlink_to("/dev/full")
    ended = trials.run(*job.at(run))
    assert ended.code == 73, ended.err
    assert "No space left on device" in ended.err
    metrics.unlink()
    aside.rename(metrics)
    finish(trials, job, run, reference)


def test_a_cache_that_finds_no_room_is_reported_with_the_variable_that_moves_it(
    trials: Server, job: Job, tmp_path: Path
) -> None:
    ended = trials.run(
        *job.at(tmp_path / "run"),
        limits={"RLIMIT_FSIZE": 1000},
        environment={"LLMKIT_CACHE": str(tmp_path / "cache")},
    )
    assert ended.code == 73, ended.err
    assert "next:  free some space, or set LLMKIT_CACHE" in ended.err
    assert not (tmp_path / "run").exists()
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_little_room_is_said_when_a_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    said: list[str] = []
    for free in (23_999, 24_000):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(0, 0, free))
        checkpoint.warn_of_space(tmp_path / "checkpoints", 1000, said.append)
    (warning,) = said
    assert "24,000 bytes, but 23,999 are free" in warning


@pytest.mark.parametrize("place", ["file", "file/inside", "n" * 300, "deep/" * 900, '"a\\0b"'])
def test_a_run_directory_that_cannot_be_is_refused_before_any_work(
    trials: Server, job: Job, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    where = place if place.startswith('"') else tmp_path / place
    ended = trials.run(*job.arguments, f"output_dir={where}")
    assert ended.code in (73, 78), ended.err
    assert "output_dir" in ended.err
    assert "tokenizer" not in ended.err
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_run_directory_that_may_not_be_written_is_refused_before_any_work(
    trials: Server, job: Job, tmp_path: Path
) -> None:
    tmp_path.chmod(0o555)
    ended = trials.run(*job.at(tmp_path / "run"))
    assert ended.code == 73, ended.err
    assert "tokenizer" not in ended.err


@pytest.mark.skipif(STRACE is None, reason="needs strace")
def test_a_read_only_disk_is_reported(trials: Server, job: Job, tmp_path: Path) -> None:
    trial = trials.start(*job.at(tmp_path / "run"), halted=True)
    with traced(trial, "-e", "inject=mkdir:error=EROFS", "-o", "/dev/null"):
        ended = trial.end()
    assert ended.code == 73, ended.err
    assert "Read-only file system" in ended.err
    assert str(tmp_path / "run") in ended.err


def test_a_stderr_that_is_full_takes_no_run_down(
    trials: Server, job: Job, reference: dict[str, str], tmp_path: Path
) -> None:
    ended = trials.run(*job.at(tmp_path / "run"), stderr="/dev/full")
    assert ended.code == 0
    assert runs.result(tmp_path / "run") == reference
