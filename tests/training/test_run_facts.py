"""What a run records of itself is true."""

from __future__ import annotations

import subprocess
from pathlib import Path

from llmkit.training.run_facts import git_commit


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
