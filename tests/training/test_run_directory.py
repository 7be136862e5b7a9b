"""A run directory belongs to one run and to one process at a time; what it records is true."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from llmkit.config.load import load_config
from llmkit.config.schema import Config
from llmkit.errors import ConfigError, RunBusy, WriteError
from llmkit.training import run_directory
from llmkit.training.run_directory import git_commit


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


def test_the_same_config_finds_its_run_again_and_another_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = [
        run_directory.locate_run(config(*keys), "pretrain")
        for keys in ((), (), ("train.micro_batch_size=2",), ("seed=7",))
    ]
    assert found[0] == found[1] == found[2]
    assert found[3] != found[0]


def test_what_changes_a_number_identifies_a_run_and_all_differences_are_told() -> None:
    recorded = {
        "requested": run_directory.identifying_keys(config("seed=1", "train.max_steps=5")),
        "resolved": {},
        "content": {"training data": "abc"},
    }
    same = config("seed=1", "train.max_steps=9", "train.logging_steps=3", "generation.top_k=4")
    run_directory.check_same_run(recorded, same, {"training data": "abc"}, "where", Path("run"))
    assert run_directory.changed_length(recorded, same) == {"train.max_steps": [5, 9]}
    other = config("seed=2", "train.max_steps=5", "train.optimizer=adamw")
    with pytest.raises(ConfigError) as fault:
        run_directory.check_same_run(recorded, other, {"training data": "x"}, "", Path("run"))
    for part in ("seed was 1, is now 2", "train.optimizer was", "the training data"):
        assert part in fault.value.what


def git(directory: Path, *arguments: str) -> str:
    own = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(directory), *own, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_which_git_names(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    inner = repository / "a" / "b"
    inner.mkdir(parents=True)
    assert git_commit(inner) is None
    git(repository, "init")
    git(repository, "commit", "--allow-empty", "-m", "one")
    assert git_commit(inner) == git(repository, "rev-parse", "HEAD")
    git(repository, "worktree", "add", "-b", "side", str(tmp_path / "tree"))
    git(tmp_path / "tree", "commit", "--allow-empty", "-m", "two")
    assert git_commit(tmp_path / "tree") == git(tmp_path / "tree", "rev-parse", "HEAD")
    git(repository, "pack-refs", "--all")
    assert git_commit(tmp_path / "tree") == git(tmp_path / "tree", "rev-parse", "HEAD")
    git(repository, "checkout", "--detach")
    assert git_commit(repository) == git(repository, "rev-parse", "HEAD")


def test_sizes_are_read_under_their_name_in_older_runs_too(tmp_path: Path) -> None:
    asked = Config(output_dir=str(tmp_path))
    for name in ("sizes", "settled"):
        record = {"command": "pretrain", name: {"data": {"block_size": 8}}}
        (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
        assert run_directory.sizes(asked, "pretrain") == {"data": {"block_size": 8}}
