"""Checkpoints and models that are not what they were: named, set aside, never loaded (F22-F30)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import InputNotFound, NoValidCheckpoint, Unsafe
from llmkit.models import pretrained
from llmkit.models.pretrained import open_model
from llmkit.storage import atomic
from llmkit.training import checkpoint
from tests.harness import Server, contents
from tests.jobs import sign

from . import runs
from .runs import STEPS, Job

OLDER, NEWER = 9, 12
"""Steps of the checkpoints that a finished run keeps."""

FILES = (
    "config.json", "generation_config.json", "manifest.json", "model.safetensors",
    "optimizer.safetensors", "state.json", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[round(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def cut(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])


def move_away(path: Path) -> None:
    """The same bytes, but somewhere else."""
    path.symlink_to(path.rename(path.parents[2] / path.name))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "first byte": lambda path: flip(path, 0),
    "middle byte": lambda path: flip(path, 0.5),
    "last byte": lambda path: flip(path, 1),
    "one byte short": lambda path: cut(path, -1),
    "half": lambda path: cut(path, path.stat().st_size // 2),
    "empty": lambda path: cut(path, 0),
    "one byte long": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "deleted": lambda path: path.unlink(),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.fixture(scope="module")
def finished(trials: Server, job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    run = tmp_path_factory.mktemp("finished") / "run"
    ended = trials.run(*job.at(run))
    assert ended.code == 0, ended.err
    assert runs.committed(run) == [OLDER, NEWER]
    assert {
        path.name for path in checkpoint.directory_of(run / "checkpoints", NEWER).iterdir()
    } == {*FILES}
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


@pytest.fixture
def root(run: Path) -> Path:
    return run / "checkpoints"


def newer(root: Path) -> Path:
    return checkpoint.directory_of(root, NEWER)


def falls_back(root: Path, named: str) -> None:
    """The older checkpoint is found, the newer one set aside and the fault of a file named."""
    said: list[str] = []
    before = contents(newer(root))
    found = checkpoint.newest(root, said.append)
    assert found is not None
    assert found.state.step == OLDER
    (warning,) = said
    assert named in warning
    assert ".corrupt-step-0000000012-1" in warning
    assert contents(root / ".corrupt-step-0000000012-1") == before


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_older_checkpoint_is_used(
    root: Path, name: str, damage: str
) -> None:
    DAMAGES[damage](newer(root) / name)
    falls_back(root, name)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_file_of_another_checkpoint_is_noticed(root: Path, name: str) -> None:
    shutil.copy(checkpoint.directory_of(root, OLDER) / name, newer(root) / name)
    falls_back(root, name)


def test_a_checkpoint_under_the_name_of_another_step_is_noticed(root: Path) -> None:
    shutil.rmtree(newer(root))
    shutil.copytree(checkpoint.directory_of(root, OLDER), newer(root))
    falls_back(root, f"step {OLDER}")


def test_a_file_that_transformers_would_read_besides_is_noticed(root: Path) -> None:
    (newer(root) / "adapter_config.json").write_text("{}")
    falls_back(root, "adapter_config.json")


def test_a_hidden_file_does_no_harm(root: Path) -> None:
    (newer(root) / ".nfs0001").touch()
    found = checkpoint.newest(root, print)
    assert found is not None
    assert found.state.step == NEWER


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/../../b", "", ".."])
def test_a_manifest_that_names_files_elsewhere_is_refused(root: Path, name: str) -> None:
    entry = {"size": 1, "sha256": "0" * 64}
    sign(newer(root), lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(Unsafe, match="outside its directory") as fault:
        checkpoint.newest(root, print)
    assert fault.value.exit_code == 77


def test_a_file_that_is_a_link_is_refused(root: Path) -> None:
    move_away(newer(root) / "model.safetensors")
    with pytest.raises(Unsafe) as fault:
        checkpoint.newest(root, print)
    assert fault.value.exit_code == 77


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.update(files=["model.safetensors"]),
        lambda manifest: manifest["files"].update({"model.safetensors": "0" * 64}),
        lambda manifest: manifest["files"]["state.json"].update(size="1"),
        lambda manifest: manifest.update(step="9"),
        lambda manifest: manifest.pop("step"),
        lambda manifest: manifest.update(format="2"),
    ],
)
def test_a_manifest_of_another_shape_is_damage(
    root: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    sign(newer(root), change)
    falls_back(root, "damaged")


@pytest.mark.parametrize(
    "change",
    [
        {"step": "many"},
        {"step": None},
        {"plan": []},
        {"plan": [[0]]},
        {"plan": 3},
        {"recent_losses": ["a"]},
    ],
)
def test_a_state_of_another_shape_is_damage(root: Path, change: dict[str, Any]) -> None:
    path = newer(root) / "state.json"
    document = json.loads(path.read_text())
    document["state"].update(change)
    path.write_text(json.dumps(document))
    content = path.read_bytes()
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    sign(newer(root), lambda manifest: manifest["files"].update({"state.json": entry}))
    falls_back(root, "state.json")


def test_a_checkpoint_of_a_newer_llmkit_is_left_alone(root: Path) -> None:
    sign(newer(root), lambda manifest: manifest.update(format=999))
    before = contents(root)
    with pytest.raises(NoValidCheckpoint, match="newer llmkit") as fault:
        checkpoint.newest(root, print)
    assert fault.value.next == "update llmkit"
    assert contents(root) == before


def test_when_all_are_damaged_the_run_never_starts_again(
    trials: Server, job: Job, run: Path
) -> None:
    for step in (OLDER, NEWER):
        flip(checkpoint.directory_of(run / "checkpoints", step) / "model.safetensors", 0.9)
    before = sorted(contents(run / "checkpoints").values())
    for _ in range(2):
        ended = trials.run(*job.at(run))
        assert ended.code == 76, ended.err
        assert "all checkpoints of the run are damaged" in ended.err
        assert sorted(contents(run / "checkpoints").values()) == before


def test_a_finished_run_whose_checkpoints_are_gone_is_not_trained_again(
    trials: Server, job: Job, run: Path
) -> None:
    shutil.rmtree(run / "checkpoints")
    before = contents(run)
    ended = trials.run(*job.at(run))
    assert ended.code == 76, ended.err
    assert "its checkpoints are gone" in ended.err
    assert {**contents(run), ".lock": ""} == {**before, ".lock": ""}


def test_a_run_resumes_from_the_older_checkpoint_to_the_same_bytes(
    trials: Server, job: Job, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trial = trials.start(*job.at(run))
    trial.until(f"step 8/{STEPS}")
    assert trial.end(signal.SIGTERM).code == 75
    older, last = runs.committed(run)
    flip(checkpoint.directory_of(run / "checkpoints", last) / "optimizer.safetensors", 0.7)
    ended = trials.run(*job.at(run))
    assert ended.code == 0, ended.err
    assert "optimizer.safetensors has sha256" in ended.err
    assert f"resuming from step {older}" in ended.err
    assert contents(run / "final") == contents(finished / "final")
    assert runs.result(run) == runs.result(finished)


def test_a_checkpoint_that_is_named_is_the_only_one_that_is_tried(
    trials: Server, job: Job, run: Path
) -> None:
    flip(newer(run / "checkpoints") / "model.safetensors", 0.5)
    damaged = trials.run(*job.at(run, f"resume={newer(run / 'checkpoints')}"))
    assert damaged.code == 76, damaged.err
    assert "model.safetensors" in damaged.err
    assert newer(run / "checkpoints").exists()
    missing = trials.run(*job.at(run, f"resume={run / 'checkpoints' / 'step-0000000099'}"))
    assert missing.code == InputNotFound.exit_code, missing.err


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(
    trials: Server, job: Job, run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    trial = trials.start(*job.at(other, "model.config.hidden_size=64"))
    trial.until(f"step 3/{STEPS}")
    assert trial.end(signal.SIGTERM).code == 75
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(run / "checkpoints", other / "checkpoints")
    ended = trials.run(*job.at(other, "model.config.hidden_size=64"))
    assert ended.code == 78, ended.err
    assert "model.config.hidden_size was 32, is now 64" in ended.err
    assert runs.committed(other) == [OLDER, NEWER]


def test_keys_that_change_no_result_may_change_at_a_resume(
    trials: Server, job: Job, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trial = trials.start(*job.at(run))
    trial.until(f"step 5/{STEPS}")
    assert trial.end(signal.SIGTERM).code == 75
    free = ("train.save_steps=2", "train.logging_steps=5", "train.eval_steps=4")
    ended = trials.run(*job.at(run, *free, "train.loss_spike=skip", "generation.top_k=1"))
    assert ended.code == 0, ended.err
    one, other = contents(run / "final"), contents(finished / "final")
    assert one.pop("README.md") != other.pop("README.md")  # the card states the command
    assert one == other


def test_the_newest_checkpoint_is_that_of_the_highest_step_whatever_the_clock_said(
    root: Path,
) -> None:
    year = 365 * 86_400
    for step, time in ((OLDER, 2_000_000_000), (NEWER, 2_000_000_000 - 3 * year)):
        for path in (directory := checkpoint.directory_of(root, step), *directory.iterdir()):
            os.utime(path, (time, time))
    found = checkpoint.newest(root, print)
    assert found is not None
    assert found.state.step == NEWER


@pytest.mark.parametrize("content", ["", "[]", "{", '{"command": '])
def test_a_damaged_run_record_is_reported(
    trials: Server, job: Job, run: Path, content: str
) -> None:
    (run / "run.json").write_text(content)
    ended = trials.run(*job.at(run))
    assert ended.code == 73, ended.err
    assert "run.json" in ended.err


def test_metrics_that_are_shorter_than_the_checkpoint_says_are_reported(
    trials: Server, job: Job, run: Path
) -> None:
    cut(run / "metrics.jsonl", 1000)
    ended = trials.run(*job.at(run))
    assert ended.code == 0, ended.err
    assert "has lost" in ended.err
    assert (run / "metrics.jsonl").read_bytes().endswith(b"}\n")


def test_a_damaged_line_of_metrics_is_reported_with_its_number(
    trials: Server, job: Job, run: Path
) -> None:
    flip(run / "metrics.jsonl", 0.0)
    ended = trials.run(*job.at(run))
    assert ended.code == 65, ended.err
    assert "metrics.jsonl:1" in ended.err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("place", [0.2, 0.9])
def test_a_model_of_ours_that_is_damaged_is_never_loaded(
    run: Path, name: str, place: float
) -> None:
    flip(run / "final" / name, place)
    with pytest.raises(NoValidCheckpoint, match=name) as fault:
        pretrained.load_model(open_model(str(run)))
    assert fault.value.exit_code == 76
    (run / "final" / atomic.MANIFEST).unlink()
    if name == "model.safetensors" and place > 0.5:
        pretrained.load_model(open_model(str(run)))  # what anyone may do with files of their own


def test_a_manifest_of_others_is_not_ours_to_judge(run: Path) -> None:
    (run / "final" / atomic.MANIFEST).write_text('{"name": "a web app"}')
    assert pretrained.load_model(open_model(str(run))).num_parameters() > 0
