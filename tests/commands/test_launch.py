"""`llmkit launch` refuses what cannot run, and ends as the command does."""

from __future__ import annotations

import json

import pytest

from llmkit.cli import app
from llmkit.commands.launch import plan_launch
from llmkit.errors import UsageError
from tests.distributed.test_slurm import STEP

ALONE = (None, None, None, None)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("", "`llmkit launch N -- COMMAND ...`"),
        ("2", "`llmkit launch N -- COMMAND ...`"),
        ("0 -- pretrain", "N should be int >= 1"),
        ("2 -- export --model x", "launch one of pretrain"),
        ("2 --restart 3 -- pretrain", "--restart"),
        ("2 --nodes 2 -- pretrain", "`--nodes M --node I --address HOST`"),
        ("2 --nodes 2 --node 2 --address a -- pretrain", "--node should be int >= 0 and < --nodes"),
    ],
)
def test_what_cannot_be_launched_is_refused(
    capsys: pytest.CaptureFixture[str], line: str, text: str
) -> None:
    assert app.run_command(["launch", *line.split()]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["-- pretrain --text a", "pretrain --text a", "-- llmkit pretrain --text a"]
)
def test_the_command_is_what_follows_the_number(line: str) -> None:
    plan = plan_launch(line.removeprefix("-- ").split(), 2, ALONE, 0)
    assert plan.words == ["pretrain", "--text", "a"]


def test_a_step_of_slurm_with_one_task_per_machine_says_which_machine_this_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {"SLURM_NTASKS": "3", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"}
    for name, value in {**STEP, **own, "SLURM_STEP_TASKS_PER_NODE": "1(x3)"}.items():
        monkeypatch.setenv(name, value)
    share = plan_launch(["pretrain"], 8, ALONE, 0).share
    assert (list(share.ranks), share.address) == (list(range(16, 24)), "gpu07")
    assert share.port is not None
    with pytest.raises(UsageError):
        plan_launch(["pretrain"], 8, (3, 3, "gpu07", 1), 0)


def test_a_fault_of_the_config_is_reported_once_with_its_code(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert app.run_command(["launch", "2", "--", "pretrain", "seed=x", "--json"]) == 78
    shown = capfd.readouterr()
    assert json.loads(shown.out)["error"]["code"] == 78
    assert shown.err.count("should be int >= 0") == 1
