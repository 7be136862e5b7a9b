"""The script for Slurm runs the commands that `--print` prints, in the order of their needs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli import app
from tests.jobs import WORDS

SBATCH = """#!/usr/bin/env python3
import os, subprocess, sys
log = open(os.environ["LOG"], "a")
print(*sys.argv[1:], file=log, flush=True)
array = next(word for word in sys.argv if word.startswith("--array="))
script, last = sys.stdin.read(), int(array.rpartition("-")[2])
for task in range(last + 1):
    own = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "7"}
    ended = subprocess.run(["bash", "-c", script], env=own)
    print(f"ended with {ended.returncode}", file=log, flush=True)
print("7")
"""
"""What Slurm does with a script, all at once."""

SRUN = """#!/bin/bash
printf '%q ' "$@" >> "$LOG.commands"
echo >> "$LOG.commands"
if [ -n "$WARNED" ]; then
    trap 'exit 75' USR1
    kill -USR1 $PPID
    while true; do sleep 0.01; done
fi
exit "${CODE:-0}"
"""

SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$LOG"
"""

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a project with text, and a PATH with programs in place of Slurm's."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    project = tmp_path / "a project"
    project.mkdir()
    monkeypatch.chdir(project)
    (project / "words.txt").write_text("".join(f"{' '.join(WORDS)}\n" for _ in range(9)))
    return tmp_path


def script_of(capsys: pytest.CaptureFixture[str], *line: str) -> tuple[str, list[str]]:
    """The script of a command line, and the commands that it prints."""
    assert app.run_command([*line, "--slurm"]) == 0
    script = capsys.readouterr().out
    assert app.run_command([*line, "--print", "--json"]) == 0
    return script, json.loads(capsys.readouterr().out)["commands"]


def submit(script: str, *options: str, **variables: str) -> None:
    """Runs a script, from anywhere."""
    environment = {**os.environ, **variables}
    command = ["bash", "-c", script, "script", *options]
    subprocess.run(command, check=True, cwd="/", env=environment, capture_output=True)


def test_each_task_of_the_array_is_a_run_of_the_sweep(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("seed=1,2", "tokenizer.vocab_size=300,400")
    line = ("pretrain", "--text", "words.txt", *keys, "--sweep", "-o", "runs/it's a grid")
    script, commands = script_of(capsys, *line)
    submit(script, "--gpus=1", CODE="65")
    asked, *ended = (slurm / "log").read_text().splitlines()
    assert "--array=0-3" in asked
    assert asked.endswith("--gpus=1")  # after ours, so that it can replace them
    assert ended == ["ended with 65"] * 4
    ran = (slurm / "log.commands").read_text().splitlines()
    assert [shlex.split(each) for each in ran] == [shlex.split(each) for each in commands]
    assert len({*commands}) == 4
    assert (slurm / "a project" / "runs" / "it's a grid").is_dir()


def test_a_run_that_was_warned_and_has_saved_is_queued_again(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, _ = script_of(capsys, "pretrain", "--text", "words.txt", "seed=1,2", "--sweep")
    submit(script, WARNED="1")
    _, *said = (slurm / "log").read_text().splitlines()
    assert said == [
        "scontrol requeue 7_0", "ended with 75", "scontrol requeue 7_1", "ended with 75"
    ]  # fmt: skip


def test_a_run_that_was_stopped_otherwise_is_not(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as by scancel."""
    script, _ = script_of(capsys, "pretrain", "--text", "words.txt", "seed=1,2", "--sweep")
    submit(script, CODE="75")
    assert "scontrol" not in (slurm / "log").read_text()


def test_experts_wait_for_their_seed_and_the_merge_for_all(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = "data: {mixture: {code: {files: words.txt}, poems: {files: words.txt}}}\n"
    Path("experts.yaml").write_text(mixture)
    script, commands = script_of(capsys, "merge", "experts.yaml", "--train", "-o", "runs/family")
    submit(script)
    asked = [each for each in (slurm / "log").read_text().splitlines() if "--array" in each]
    assert ["--array=0-0" in each for each in asked] == [True, False, True]
    assert ["--dependency=afterok:7" in each for each in asked] == [False, True, True]
    ran = (slurm / "log.commands").read_text().splitlines()
    assert [shlex.split(each) for each in ran] == [shlex.split(each) for each in commands]


@pytest.mark.parametrize("switch", ["--slurm", "--print"])
def test_a_script_of_a_single_run_is_refused(
    slurm: Path, capsys: pytest.CaptureFixture[str], switch: str
) -> None:
    assert app.run_command(["pretrain", "--text", "words.txt", switch]) == 2
    assert f"`{switch}` needs `--sweep`" in capsys.readouterr().err
