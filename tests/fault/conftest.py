"""The runs that the fault tests break off."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import Server

from . import runs


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, runs.Job]:
    """Small runs, by their commands."""
    return runs.make_jobs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def job(jobs: dict[str, runs.Job]) -> runs.Job:
    """The run that is broken off, where a file of tests names no other."""
    return jobs["pretrain"]


@pytest.fixture(scope="module")
def reference(
    trials: Server, job: runs.Job, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What an uninterrupted run leaves."""
    run = tmp_path_factory.mktemp("reference") / "run"
    ended = trials.run(*job.at(run))
    assert ended.code == 0, ended.err
    return runs.result(run)


@pytest.fixture(scope="module")
def paired_reference(
    trials: Server, job: runs.Job, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An uninterrupted run of two processes."""
    run = tmp_path_factory.mktemp("reference") / "run"
    for ended in runs.ends(runs.pair(trials, *job.at(run))):
        assert ended.code == 0, ended.err
    return run
