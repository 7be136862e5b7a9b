"""The rows of the matrix that need a GPU (G01, G02)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import runs
from .runs import STEPS, Job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}


def llmkit(*arguments: str) -> subprocess.Popen[str]:
    """Starts a command line; no copy of a process may use a GPU, so it is a new one."""
    command = [sys.executable, "-m", "llmkit", *arguments]
    return subprocess.Popen(command, env=OFFLINE, stderr=subprocess.PIPE, text=True)


def finished(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command line."""
    with llmkit(*arguments) as process:
        said = process.communicate(timeout=280)[1]
    return process.returncode, said


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
@pytest.mark.parametrize("compiling", ["false", "true"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_run_on_a_gpu_ends_with_the_same_bytes(
    jobs: dict[str, Job], tmp_path: Path, precision: str, compiling: str, command: str
) -> None:
    changes = (f"train.precision={precision}", f"train.compile={compiling}")
    job, run, reference = jobs[command], tmp_path / "run", tmp_path / "reference"
    code, said = finished(*job.at(reference, *changes))
    assert code == 0, said
    with llmkit(*job.at(run, *changes)) as process:
        assert process.stderr is not None
        assert any(f"step 8/{STEPS}" in line for line in process.stderr)
        process.send_signal(signal.SIGKILL)
    code, said = finished(*job.at(run, *changes))
    assert code == 0, said
    assert runs.result(run) == runs.result(reference)


def test_a_gpu_without_enough_memory_is_reported_with_the_batch_to_try(
    jobs: dict[str, Job], tmp_path: Path
) -> None:
    batch = 1 << 16
    changes = (
        f"train.global_batch_size={batch}", f"train.micro_batch_size={batch}",
        "model.config.hidden_size=1024", "model.config.num_hidden_layers=24",
        "data.block_size=256",
    )  # fmt: skip
    code, said = finished(*jobs["pretrain"].at(tmp_path / "run", *changes))
    assert code == 71, said
    assert f"out of memory with a micro-batch of {batch} sequences" in said
    assert f"train.micro_batch_size={batch // 2}" in said
    assert "Traceback" not in said


def test_more_processes_than_gpus_are_refused_with_the_number_to_launch(
    jobs: dict[str, Job], tmp_path: Path
) -> None:
    gpus = torch.cuda.device_count()
    code, said = finished("launch", str(gpus + 1), "--", *jobs["pretrain"].at(tmp_path / "run"))
    assert code == 2, said
    assert f"llmkit launch {gpus} --" in said
