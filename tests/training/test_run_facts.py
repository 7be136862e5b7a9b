"""What a run records of itself is true."""

from __future__ import annotations

import subprocess
from pathlib import Path

from llmkit.config.schema import Config
from llmkit.training.run_facts import git_commit, origins


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


def test_what_was_given_differs_from_what_was_chosen_and_from_defaults() -> None:
    asked = Config().changed(
        model={"size": "tiny", "config": {"num_hidden_layers": 2}},
        train={"max_minutes": 5.0, "learning_rate": 0.1, "warmup_steps": 100},
    )
    resolved = asked.changed(
        model={"architecture": "llama", "config": {"num_hidden_layers": 2, "hidden_size": 64}},
        train={"max_minutes": None, "max_steps": 70, "warmup_steps": 0.5, "optimizer": "muon",
               "num_train_epochs": 3.0, "plan": ((0, 70),)},
    )  # fmt: skip
    assert origins(asked, resolved.model_dump(mode="json")) == {
        "model.size": "given", "model.config.num_hidden_layers": "given",
        "train.max_minutes": "given", "train.learning_rate": "given", "train.warmup_steps": "given",
        "model.architecture": "auto", "model.config.hidden_size": "auto",
        "train.max_steps": "auto", "train.optimizer": "auto", "train.num_train_epochs": "auto",
    }  # fmt: skip
