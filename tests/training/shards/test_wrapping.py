"""Weights divided among processes give the numbers of one process (a rung of the ladder)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.errors import ConfigError
from llmkit.storage import outputs
from llmkit.training.shards import wrapping
from llmkit.training.shards.files import StoredTensors
from tests.harness import Server
from tests.training.conftest import tiny_model

QUICK = ("qwen3-adamw", "llama-muon")
SLOW = ("mixtral-adamw", "qwen3-muon")


def run(trials: Server, root: Path, count: int, names, sizes=(None,), **options) -> Path:
    """Trains models in some processes, which must succeed."""
    keywords = {"root": str(root), "names": list(names), "sizes": list(sizes), **options}
    for trial in trials.start_processes(count, function="train_divided", keywords=keywords):
        ended = trial.end()
        assert ended.code == 0, ended.err
    return root


def check_equal(found: Path, expected: Path) -> None:
    """Losses agree to 1e-5, weights to 1e-4."""
    ours, theirs = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (found, expected)
    )
    assert len(theirs) > 10
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-6)
    ours, theirs = (
        StoredTensors(outputs.checkpoints(run / "checkpoints")[-1], "model")
        for run in (found, expected)
    )
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        assert (ours[name] - theirs[name]).abs().max() < 1e-4, name


@pytest.fixture(scope="module")
def alone(trials: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process."""
    return run(trials, tmp_path_factory.mktemp("alone"), 1, QUICK)


def test_two_and_four_processes_give_the_numbers_of_one(
    trials: Server, alone: Path, tmp_path: Path
) -> None:
    run(trials, tmp_path / "two", 2, QUICK)
    run(trials, tmp_path / "four", 4, QUICK[1:], sizes=(2,))
    for name in QUICK:
        check_equal(tmp_path / "two" / f"{name}-None", alone / f"{name}-None")
    check_equal(tmp_path / "four" / f"{QUICK[1]}-2", alone / f"{QUICK[1]}-None")


def test_a_run_of_two_processes_resumes_with_one_and_then_four(
    trials: Server, alone: Path, tmp_path: Path
) -> None:
    name = QUICK[0]
    for count, stop in ((2, True), (1, True), (4, False)):
        run(trials, tmp_path, count, [name], stop=stop)
    check_equal(tmp_path / f"{name}-None", alone / f"{name}-None")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_architectures_and_optimizers_give_the_numbers_of_one_process(
    trials: Server, tmp_path: Path, name: str
) -> None:
    run(trials, tmp_path / "one", 1, [name])
    run(trials, tmp_path / "four", 4, [name], sizes=(None, 2))
    for size in (None, 2):
        check_equal(tmp_path / "four" / f"{name}-{size}", tmp_path / "one" / f"{name}-None")


class TwoProcesses:
    """What `is_chosen` and `shard_weights` ask of two processes."""

    count = 2


def test_what_was_not_tested_is_refused_by_name() -> None:
    model, two = tiny_model(), TwoProcesses()
    assert not wrapping.is_chosen("auto", model, two, "preference tuning")
    with pytest.raises(ConfigError, match="preference tuning"):
        wrapping.is_chosen(True, model, two, "preference tuning")
    assert wrapping.is_chosen(True, model, two, None)
    assert not wrapping.is_chosen(False, model, two, None)
    with pytest.raises(ConfigError, match="does not divide the 2 processes"):
        wrapping.shard_weights(model, two, 3)
