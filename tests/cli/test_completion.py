"""Shell completion: commands, options, keys, their values and run directories, in three shells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def ask(
    shell: str, line: str, where: Path, *flags: str, action: str = "get-args"
) -> subprocess.CompletedProcess[str]:
    """What the program prints when a shell asks for the completions of a line."""
    words = line.replace("=", " = ") if shell == "bash" else line
    own = {
        "_LLMKIT_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": action,
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
    (folder / "train.yaml").touch()
    return folder


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("llmkit pretr", "pretrain"),
        ("llmkit pretrain --te", "--text"),
        ("llmkit pretrain train.learn", "train.learning_rate="),
        ("llmkit pretrain mine.yaml data.block", "data.block_size="),
        ("llmkit pretrain train.precision=b", "bf16"),
        ("llmkit pretrain t", "train.yaml"),
        ("llmkit keys train.learn", "train.learning_rate"),
        ("llmkit keys --for finetune/", "finetune/completion"),
        ("llmkit generate --model runs/", "runs/first"),
        ("llmkit report ru", "runs/first"),
        ("llmkit push ru", "runs/first"),
    ],
)
def test_a_word_is_completed(here: Path, shell: str, line: str, expected: str) -> None:
    done = ask(shell, line, here)
    assert expected in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


def test_only_keys_of_the_command_and_directories_of_runs_are_offered(here: Path) -> None:
    assert ask("bash", "llmkit chat train.", here).stdout.strip() == ""
    assert ask("bash", "llmkit generate --model runs/se", here).stdout.strip() == ""


@pytest.mark.parametrize(
    ("line", "common"), [("train.learn", "train.learning_rate="), ("model.l", "model.lora.")]
)
def test_no_key_is_the_only_candidate_since_the_shell_would_add_a_space(
    here: Path, line: str, common: str
) -> None:
    found = ask("bash", f"llmkit finetune {line}", here).stdout.split()
    assert len(found) > 1
    assert min(found).startswith(common)
    assert max(found).startswith(common)
    assert len({each[len(common) : len(common) + 1] for each in found}) > 1


def test_a_key_is_completed_section_by_section(here: Path) -> None:
    found = ask("bash", "llmkit pretrain ", here).stdout.split()
    assert {"train.", "data.", "seed=", "train.yaml"} <= set(found)
    assert "train.learning_rate=" not in found


def test_the_shell_completes_files_where_nothing_fits(here: Path) -> None:
    for line in ("llmkit pretrain corp", "llmkit pretrain data.train_files=corp"):
        assert ask("bash", line, here).stdout.strip() == ""
        assert ask("fish", line, here, action="is-args").returncode == 1
    assert ask("fish", "llmkit pretrain train.", here, action="is-args").returncode == 0


def test_completion_loads_no_library(here: Path) -> None:
    loaded = ask("bash", "llmkit pretrain train.", here, "-X", "importtime").stderr
    assert "llmkit.cli.app" in loaded
    assert not any(f" {name}\n" in loaded for name in ("torch", "transformers", "numpy"))
