"""A run directory belongs to one run and to one process at a time."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from llmkit.config.load import load_config
from llmkit.config.schema import Config
from llmkit.errors import ConfigError, RunBusy, WriteError
from llmkit.training import run_directory, run_identity


def config(*keys: str) -> Config:
    return load_config("pretrain", None, ["data.train_files=a.txt", *keys]).config


def test_a_directory_is_held_by_one_process_and_free_again_after_it(tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    with run_directory.held(run):
        with pytest.raises(RunBusy, match="in use by process"), run_directory.held(run):
            pass
        with pytest.raises(RunBusy):
            run_directory.check_run_directory(config(f"output_dir={run}"), "pretrain")
    with run_directory.held(run):
        pass


def test_only_a_run_of_the_same_command_is_resumed_and_nothing_is_written(tmp_path: Path) -> None:
    named = f"output_dir={tmp_path / 'run'}"
    run_directory.check_run_directory(config(named), "pretrain")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"command": "pretrain"}))
    run_directory.check_run_directory(config(named), "pretrain")
    with pytest.raises(WriteError, match="a run of pretrain, not of finetune"):
        run_directory.check_run_directory(config(named), "finetune")
    with pytest.raises(WriteError):
        run_directory.check_run_directory(config(named, "resume=never"), "pretrain")
    (tmp_path / "run" / "run.json").rename(tmp_path / "run" / "thesis.txt")
    with pytest.raises(WriteError, match=r"thesis\.txt"):
        run_directory.check_run_directory(config(named), "pretrain")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def begin(*keys: str) -> Path:
    """The directory of a run that has begun."""
    with run_directory.hold_run_directory(config(*keys), "pretrain") as directory:
        return directory


def test_the_same_config_finds_its_run_again_and_another_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_directory.locate_run(config(), "pretrain") == Path("runs/pretrain-a-1")
    assert not Path("runs").exists()
    assert [begin(), begin("seed=7"), begin("train.micro_batch_size=2"), begin("seed=7")] == [
        Path(f"runs/pretrain-a-{number}") for number in (1, 2, 1, 2)
    ]
    assert run_directory.begun_run(config("seed=8"), "pretrain") is None
    assert run_directory.locate_run(config("seed=8"), "pretrain") == Path("runs/pretrain-a-3")
    assert begin("resume=never") == begin() == Path("runs/pretrain-a-3")


def test_another_config_is_refused_before_any_work(tmp_path: Path) -> None:
    state = tmp_path / "checkpoints" / "step-0000000001" / "state.json"
    state.parent.mkdir(parents=True)
    before = run_identity.identifying_keys(config())
    asked = {key: value for key, value in before.items() if key != "train.adam_beta1"}
    recorded = {"requested": asked, "resolved": {"train.learning_rate": 0.5}}
    state.write_text(json.dumps({"identity": recorded}))
    (tmp_path / "run.json").write_text(json.dumps({"command": "pretrain"}))
    here = f"output_dir={tmp_path}"
    for same in ("train.learning_rate=0.5", "train.max_steps=7", "train.adam_beta1=0.9"):
        run_directory.check_run_directory(config(here, same), "pretrain")
    with pytest.raises(ConfigError, match="seed was 0, is now 3"):
        run_directory.check_run_directory(config(here, "seed=3"), "pretrain")


def test_sizes_are_read_under_their_name_in_older_runs_too(tmp_path: Path) -> None:
    asked = Config(output_dir=str(tmp_path))
    for name in ("sizes", "settled"):
        record = {"command": "pretrain", name: {"data": {"block_size": 8}}}
        (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
        assert run_directory.sizes(asked, "pretrain") == {"data": {"block_size": 8}}


def test_a_full_disk_is_reported_with_the_run_directory(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(WriteError) as fault, run_directory.held(tmp_path / "run"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert fault.value.where == str(tmp_path / "run")


def test_a_directory_that_a_process_does_not_see_is_refused_by_all(trials, tmp_path: Path) -> None:
    keywords = {"root": str(tmp_path)}
    processes = trials.start_processes(2, function="hold_unseen", keywords=keywords)
    for ended in [process.end() for process in processes]:
        assert ended.code == 0, ended.err
        assert "does not see the run directory of rank 0" in ended.out
        assert "a disk that all nodes share" in ended.out
