"""Shell completion: commands, options, keys of the command and run directories, in three shells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def ask(shell: str, line: str, where: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """What the program prints when a shell asks for the completions of a line."""
    own = {
        "_LLMKIT_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    command = [sys.executable, *flags, "-c", "from llmkit.cli.app import main; main()"]
    environment = {**os.environ, **own}
    return subprocess.run(
        command, env=environment, cwd=where, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    for name in ("first", "second"):
        (folder / "runs" / name).mkdir(parents=True)
    (folder / "runs" / "first" / "run.json").write_text("{}")
    return folder


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("llmkit pretr", "pretrain"),
        ("llmkit pretrain --te", "--text"),
        ("llmkit pretrain train.learn", "train.learning_rate="),
        ("llmkit pretrain mine.yaml data.block", "data.block_size="),
        ("llmkit generate --model runs/", "runs/first"),
        ("llmkit report ru", "runs/first"),
    ],
)
def test_a_word_is_completed(here: Path, shell: str, line: str, expected: str) -> None:
    done = ask(shell, line, here)
    assert expected in done.stdout
    assert done.stderr == ""


def test_only_keys_of_the_command_and_directories_of_runs_are_offered(here: Path) -> None:
    assert ask("bash", "llmkit chat train.", here).stdout.strip() == ""
    assert ask("bash", "llmkit generate --model runs/se", here).stdout.strip() == ""


def test_completion_loads_no_library(here: Path) -> None:
    loaded = ask("bash", "llmkit pretrain train.", here, "-X", "importtime").stderr
    assert "llmkit.cli.app" in loaded
    assert not any(f" {name}\n" in loaded for name in ("torch", "transformers", "numpy"))
