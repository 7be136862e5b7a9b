"""Runs whose data or learning rate lead astray: a line of nonsense in the text, a rate that no
weight survives (F54 to F56)."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.harness import Server
from tests.jobs import spikes

from . import runs
from .runs import Job

LINE = "the cat sat on a mat and saw how far the little dog had run away from home\n"
NONSENSE = "zqxjkvbpgw\n"

SETTINGS = (
    "data.document=line", "data.block_size=16", "data.validation_fraction=0",
    "train.global_batch_size=4", "train.micro_batch_size=4", "train.compile=false",
    "train.precision=fp32", "train.lr_scheduler_type=constant", "train.warmup_steps=0",
    "generation.max_new_tokens=4",
)  # fmt: skip

NEW = (
    "model.config.hidden_size=32", "model.config.num_hidden_layers=2", "tokenizer.vocab_size=300",
    "train.max_steps=120", "train.learning_rate=1e-2",
)  # fmt: skip

GOING_ON = (
    "train.num_train_epochs=1", "train.learning_rate=1e-3", "train.logging_steps=1",
    "train.save_steps=4", "seed=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def job(trials: Server, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Goes on training a model that knows its text by heart, on text with a line of nonsense."""
    directory = tmp_path_factory.mktemp("spike")
    learned, text, model = (directory / name for name in ("learned.txt", "text.txt", "run"))
    learned.write_text(LINE * 400)
    text.write_text(LINE * 151 + NONSENSE + LINE * 49)  # in one block, which comes at step 46
    ended = trials.run("pretrain", "--text", learned, *SETTINGS, *NEW, "--output-dir", model)
    assert ended.code == 0, ended.err
    return Job(("pretrain", "--text", str(text), "--model", str(model), *SETTINGS, *GOING_ON))


@pytest.fixture(scope="module")
def skipping(trials: Server, job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that refuses the step of the nonsense and that nobody breaks off."""
    run = tmp_path_factory.mktemp("skipping") / "run"
    ended = trials.run(*job.at(run, "train.loss_spike=skip"))
    assert ended.code == 0, ended.err
    return run


def test_a_spike_is_refused_or_noted_as_the_config_says(
    trials: Server, job: Job, skipping: Path, tmp_path: Path
) -> None:
    (refused,) = spikes(skipping)
    assert refused["loss_spike"] > refused["limit"]
    assert refused["refused"] == "spike"
    ended = trials.run(*job.at(tmp_path / "run"))
    assert ended.code == 0, ended.err
    assert f"step {refused['step']} kept: its loss" in ended.err
    (noted,) = spikes(tmp_path / "run")
    assert noted == {key: value for key, value in refused.items() if key != "refused"}
    assert "model.safetensors" in runs.differences(tmp_path / "run", skipping)


@pytest.mark.parametrize("steps_before", [1, 0])
def test_a_run_that_is_killed_around_a_spike_ends_with_the_same_bytes(
    trials: Server, job: Job, skipping: Path, tmp_path: Path, steps_before: int
) -> None:
    run, (spike,) = tmp_path / "run", spikes(skipping)
    step = spike["step"]
    trial = trials.start(*job.at(run, "train.loss_spike=skip"))
    trial.until(f"step {step - 1}/" if steps_before else f"step {step} skipped")
    assert trial.end(signal.SIGKILL).code == -9
    ended = trials.run(*job.at(run, "train.loss_spike=skip"))
    assert ended.code == 0, ended.err
    assert runs.result(run) == runs.result(skipping)


def test_a_run_that_stops_at_a_spike_continues_without_it_when_asked(
    trials: Server, job: Job, skipping: Path, tmp_path: Path
) -> None:
    run, (spike,) = tmp_path / "run", spikes(skipping)
    for _ in range(2):  # until it is told what to do about it
        ended = trials.run(*job.at(run, "train.loss_spike=stop"))
        assert ended.code == 79, ended.err
        for part in ("the loss spiked", f"step {spike['step']}", "kept:  weights from before"):
            assert part in ended.err
        assert "train.loss_spike=skip" in ended.err
        assert runs.committed(run)[-1] == spike["step"]
    ended = trials.run(*job.at(run, "train.loss_spike=skip"))
    assert ended.code == 0, ended.err
    assert runs.result(run) == runs.result(skipping)


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
@pytest.mark.parametrize("rate", ["1e20", "1e30"])
def test_a_rate_that_no_weight_survives_ends_the_run_and_saves_only_finite_numbers(
    trials: Server, jobs: dict[str, Job], tmp_path: Path, command: str, rate: str
) -> None:
    run = tmp_path / "run"
    changes = (f"train.learning_rate={rate}", "train.warmup_steps=0", "train.save_steps=1")
    ended = trials.run(*jobs[command].at(run, *changes))
    assert ended.code == 79, ended.err
    for part in ("not finite", "where:", "kept:", "next:  lower train.learning_rate"):
        assert part in ended.err
    assert "Traceback" not in ended.err
    assert not (run / "final").exists()
    for file in run.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file
