"""The variables of launchers are taken, and commands that share no work are refused."""

from __future__ import annotations

import json
import os

import pytest

from llmkit.cli import app
from llmkit.config.jobs import TASKS
from llmkit.distributed import launcher
from llmkit.errors import UsageError
from tests.distributed.test_slurm import STEP


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that a test sets, or has set, are gone after it."""
    for name in launcher.LAUNCHER:
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)


def test_srun_is_a_launcher_unless_another_one_has_set_the_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")  # as a user has exported it
    launcher.check_environment()
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")] == [
        "3",
        "5",
        "10.0.0.1",
    ]
    monkeypatch.setenv("SLURM_PROCID", "4")
    launcher.check_environment()
    assert os.environ["RANK"] == "3"


@pytest.mark.parametrize(
    "line", ["export --model x", "chat --model x", "merge x.yaml", "keys", "init"]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_command_that_shares_no_work_is_refused_once_in_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, rank: int
) -> None:
    whole = {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
    }
    for name, value in whole.items():
        monkeypatch.setenv(name, value)
    assert app.run_command([*line.split(), "--json"]) == 2
    shown = capsys.readouterr()
    if rank == 0:
        assert "runs in a single process, and there are 2" in json.loads(shown.out)["error"]["what"]
    else:
        assert shown.out + shown.err == ""


def test_every_command_with_a_config_either_shares_its_work_or_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    refused = set()
    for command in TASKS:
        try:
            launcher.refuse_sharing_work(command)
        except UsageError:
            refused.add(command)
    assert refused == set(TASKS) - {*launcher.SHARED_COMMANDS}
