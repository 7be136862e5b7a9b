"""A run on two machines whose network, disk or power fails (F69 to F72)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.training import checkpoint
from tests.harness import Server
from tests.machines import Machines, two_machines

from . import runs
from .runs import STEPS, Job

SOON = 60
"""Seconds, on the busiest of machines, within which a lost process is noticed; the limit that a run
has by default is ten times as long."""


@pytest.fixture
def machines() -> Iterator[Machines]:
    """Two machines."""
    with two_machines() as machines:
        yield machines


@pytest.mark.slow
@pytest.mark.parametrize("node", [0, 1])
def test_a_machine_that_is_gone_ends_the_run_soon_and_loses_nothing(
    trials: Server, job: Job, paired_reference: Path, machines: Machines, tmp_path: Path, node: int
) -> None:
    """No interface is named: each process finds its own."""
    run = tmp_path / "run"
    processes = machines.start(trials, *job.at(run))
    processes[0].until(f"step 4/{STEPS}")
    processes[node].end(signal.SIGKILL)
    gone = time.monotonic()
    ended = processes[1 - node].end()
    assert time.monotonic() - gone < SOON
    assert ended.code == 71, ended.err
    assert "another process of the run was lost" in ended.err
    assert f"noticed by process {1 - node} of 2" in ended.err
    assert checkpoint.newest(run / "checkpoints", print) is not None
    for ended in runs.ends(machines.start(trials, *job.at(run))):
        assert ended.code == 0, ended.err
    assert runs.result(run) == runs.result(paired_reference)
    assert runs.leftovers(run) == []


@pytest.mark.slow
def test_a_cable_that_is_cut_ends_both_machines_after_the_time_that_the_config_says(
    trials: Server, job: Job, paired_reference: Path, machines: Machines, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = machines.start(trials, *job.at(run, "train.ddp_timeout=5"))
    processes[0].until(f"step 4/{STEPS}")
    machines.cut()
    cut = time.monotonic()
    for ended in runs.ends(processes):
        assert ended.code == 71, ended.err
        assert "another process of the run does not answer" in ended.err
    assert 4 < time.monotonic() - cut < SOON
    runs.finish(trials, job, run, paired_reference)


def test_a_run_directory_that_one_machine_does_not_see_is_refused_before_any_work(
    trials: Server, job: Job, machines: Machines, tmp_path: Path
) -> None:
    """Both have a directory of that name."""
    disk = tmp_path / "disk"
    disk.mkdir()
    for ended in runs.ends(machines.start(trials, *job.at(disk / "run"), own=str(disk))):
        assert ended.code == 78, ended.err
        assert "does not see the run directory of rank 0" in ended.err
        assert "(rank 1)" in ended.err
        assert "tokenizer" not in ended.err
    assert list(disk.iterdir()) == []


def test_a_machine_without_the_data_says_so(
    trials: Server, job: Job, machines: Machines, tmp_path: Path
) -> None:
    """It fails before it can tell the others, which a launcher ends."""
    processes = machines.start(
        trials, *job.at(tmp_path / "run"), own=str(Path(job.arguments[2]).parent)
    )
    ended = processes[1].end()
    assert ended.code == 66, ended.err
    assert "does not exist (rank 1)" in ended.err
    processes[0].end(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)  # each of four processes loads the libraries
def test_launch_on_two_machines_restarts_when_a_process_is_lost(
    trials: Server, job: Job, paired_reference: Path, machines: Machines, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    launchers = []
    for node, name in enumerate(machines.names):
        share = f"1 --nodes 2 --node {node} --address {machines.addresses[0]} --restarts 1 --"
        words = [sys.executable, "-m", "llmkit", "launch", *share.split(), *job.at(run)]
        command = ["ip", "netns", "exec", name, *words]
        launchers.append(
            subprocess.Popen(
                command, env=trials.environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
            )
        )
    deadline = time.monotonic() + 400
    while not runs.committed(run):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child_of(launchers[1].pid), signal.SIGKILL)
    said = [each.communicate(timeout=400)[1].decode() for each in launchers]
    assert [each.returncode for each in launchers] == [0, 0], said
    assert "rank 1 was ended by SIGKILL: restart 1 of 1" in said[1]
    assert "a process was lost: restart 1 of 1" in said[0]
    assert "machine 1 of 2: ranks 1 to 1, rank 0 at 10.213.0.1:29500" in said[1]
    assert runs.final_model(run) == runs.final_model(paired_reference)


def child_of(process: int) -> int:
    return int(Path(f"/proc/{process}/task/{process}/children").read_text().split()[0])
