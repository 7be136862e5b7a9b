"""Processes that are lost, hang, fail alone, meet, or run out of memory (F10-F14, F57-F66)."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from pathlib import Path

import pytest

from llmkit.training import checkpoint
from tests.harness import Ended, Server
from tests.jobs import metrics
from tests.training import with_dropout

from . import runs
from .runs import STEPS, Job


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_both_at_the_same_step(
    trials: Server,
    job: Job,
    paired_reference: Path,
    tmp_path: Path,
    rank: int,
    number: signal.Signals,
) -> None:
    run = tmp_path / "run"
    processes = runs.pair(trials, *job.at(run))
    processes[0].until(f"step 4/{STEPS}")
    processes[rank].send(number)
    codes = [ended.code for ended in runs.ends(processes)]
    assert codes == [130 if number == signal.SIGINT else 75] * 2
    runs.finish(trials, job, run, paired_reference)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_other_with_everything_kept(
    trials: Server, job: Job, paired_reference: Path, tmp_path: Path, rank: int
) -> None:
    run = tmp_path / "run"
    processes = runs.pair(trials, *job.at(run))
    processes[0].until(f"step 4/{STEPS}")
    assert processes[rank].end(signal.SIGKILL).code == -9
    other = processes[1 - rank].end()  # long before the time after which it gives up waiting
    assert other.code == 71, other.err
    if rank == 1:
        for part in ("another process of the run was lost", "process 0 of 2", "kept:", "next:"):
            assert part in other.err
    assert checkpoint.newest(run / "checkpoints", print) is not None
    runs.finish(trials, job, run, paired_reference)


@pytest.mark.slow
def test_tasks_of_srun_train_together_and_stop_at_its_warning(
    trials: Server, job: Job, paired_reference: Path, tmp_path: Path
) -> None:
    """Slurm's variables are all that they are given; it sends USR1 to each of them."""
    run = tmp_path / "run"
    step = {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2",
    }  # fmt: skip
    tasks = [
        trials.start(
            *job.at(run),
            environment={**step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in (0, 1)
    ]
    tasks[0].until(f"step 4/{STEPS}")
    for task in tasks:
        task.send(signal.SIGUSR1)
    assert [task.end().code for task in tasks] == [75, 75]
    runs.finish(trials, job, run, paired_reference)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_of_one_process_ends_the_run_and_keeps_the_checkpoint_before(
    trials: Server, job: Job, paired_reference: Path, tmp_path: Path, rank: int
) -> None:
    """Each process writes files of a checkpoint."""
    run = tmp_path / "run"
    processes = runs.pair(trials, *job.at(run))
    processes[0].until(f"step 9/{STEPS}")
    processes[rank].limit(resource.RLIMIT_FSIZE, 20_000)
    codes = {ended.code for ended in runs.ends(processes)}
    assert codes == {73}
    assert checkpoint.newest(run / "checkpoints", print) is not None
    assert not (run / "final").exists()
    runs.finish(trials, job, run, paired_reference)


def test_a_process_that_hangs_is_given_up_after_the_time_that_the_config_says(
    trials: Server, job: Job, paired_reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = runs.pair(trials, *job.at(run, "train.ddp_timeout=2"))
    processes[0].until(f"step 4/{STEPS}")
    processes[1].send(signal.SIGSTOP)
    ended = processes[0].end()
    assert ended.code == 71, ended.err
    assert "another process of the run does not answer" in ended.err
    assert processes[1].end(signal.SIGKILL).code == -9
    runs.finish(trials, job, run, paired_reference)


def test_data_that_one_process_cannot_read_are_reported_by_it(trials: Server) -> None:
    zero, one = runs.ends(runs.pair(trials, function="train", keywords={"bad_row": 7}))
    assert (zero.code, one.code) == (71, 65), (zero.err, one.err)
    assert "row 7 is bad (rank 1)" in one.err
    assert "another process of the run was lost" in zero.err


def test_validation_over_two_processes_counts_each_example_once(trials: Server) -> None:
    alone = trials.run(function="train", keywords={"validation": 7})
    zero, one = runs.ends(runs.pair(trials, function="train", keywords={"validation": 7}))
    assert (alone.code, zero.code, one.code) == (0, 0, 0), (alone.err, zero.err, one.err)
    assert zero.out == one.out
    assert float(zero.out) == pytest.approx(float(alone.out), rel=1e-6)


@pytest.mark.parametrize("objective", with_dropout.OBJECTIVES)
def test_two_processes_give_the_losses_of_one_with_dropout(trials: Server, objective: str) -> None:
    asked = {"function": "train_with_dropout", "keywords": {"objective": objective}}
    alone, (zero, one) = trials.run(**asked), runs.ends(runs.pair(trials, **asked))
    assert (alone.code, zero.code, one.code) == (0, 0, 0), (alone.err, zero.err, one.err)
    expected, found = losses(alone), losses(zero)
    assert len(expected) == 10
    assert found == pytest.approx(expected, rel=1e-6)
    assert "Warning" not in zero.err + one.err


def losses(ended: Ended) -> list[float]:
    return [json.loads(line)["train_loss"] for line in ended.out.splitlines() if line]


def test_a_run_resumes_with_fewer_processes(
    trials: Server, job: Job, paired_reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = runs.pair(trials, *job.at(run))
    processes[0].until(f"step 4/{STEPS}")
    processes[0].send(signal.SIGTERM)
    assert [ended.code for ended in runs.ends(processes)] == [75, 75]
    ended = trials.run(*job.at(run))
    assert ended.code == 0, ended.err
    assert "processes was 2, is now 1: last digits may differ" in ended.err
    for one, two in zip(metrics(run), metrics(paired_reference), strict=True):
        assert one.keys() == two.keys()
        if "samples" not in one:
            assert one == pytest.approx(two, rel=1e-3)


def test_a_second_run_in_the_same_directory_is_refused_until_the_first_is_gone(
    trials: Server, job: Job, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = trials.start(*job.at(run))
    first.until(f"step 2/{STEPS}")
    first.send(signal.SIGSTOP)
    second = trials.run(*job.at(run))
    assert second.code == 80, second.err
    assert f"process {first.process} on {socket.gethostname()}" in second.err
    assert "tokenizer" not in second.err  # before any work
    assert first.end(signal.SIGKILL).code == -9
    assert trials.run(*job.at(run)).code == 0


def test_memory_that_runs_out_is_reported_with_the_batch_to_try(
    trials: Server, job: Job, tmp_path: Path
) -> None:
    """The address space is limited while the steps are under way, so that an allocation fails."""
    changes = ("data.block_size=256", "train.micro_batch_size=8", "model.config.hidden_size=256")
    trial = trials.start(*job.at(tmp_path / "run", *changes))
    trial.until(f"step 2/{STEPS}")
    trial.limit(resource.RLIMIT_AS, used(trial.process))
    ended = trial.end()
    assert ended.code == 71, ended.err
    assert "out of memory" in ended.err
    assert "next:" in ended.err
    assert "Traceback" not in ended.err


def used(process: int) -> int:
    """Bytes of address space that a process has."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_micro_batch_that_does_not_fit_is_reported_with_a_smaller_one(trials: Server) -> None:
    ended = trials.run(function="train", keywords={"huge": True})
    assert ended.code == 71, ended.err
    assert "out of memory with a micro-batch of 8 sequences" in ended.err
    assert "next:  write train.micro_batch_size=4; results stay the same" in ended.err


def test_two_processes_and_two_micro_batches_give_the_same_bytes(
    trials: Server, job: Job, paired_reference: Path, tmp_path: Path
) -> None:
    """A sum of two does not hang on their order; of more it may, in the last digits."""
    ended = trials.run(*job.at(tmp_path / "run"))
    assert ended.code == 0, ended.err
    assert runs.final_model(tmp_path / "run") == runs.final_model(paired_reference)
