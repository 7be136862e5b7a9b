"""What a run says of its choices and of how to use and repeat it."""

from __future__ import annotations

import json

import yaml

from llmkit.reporting.page.circumstances import choices, repeating_command, using_command
from llmkit.reporting.run_record import read_run
from tests.conftest import MakeRun


def test_choices_are_given_or_chosen_with_a_reason(make_run: MakeRun) -> None:
    facts = {
        "command": "pretrain",
        "origins": {"train.max_steps": "given", "train.optimizer": "auto", "gone": "auto",
                    "data.train_files": "given"},
        "reasons": {"train.optimizer": "learns faster"},
    }  # fmt: skip
    config = {"train": {"max_steps": 3, "optimizer": "muon"}, "data": {"train_files": ["/a/b.txt"]}}
    run = read_run(make_run(run_json=json.dumps(facts), config_yaml=yaml.safe_dump(config)))
    found = choices(run)
    assert found["auto"] == [
        {"key": "train.optimizer", "value": "muon", "reason": "learns faster"}
    ]  # fmt: skip
    assert [row["value"] for row in found["given"]] == ["3", "b.txt"]


def test_the_command_repeats_as_typed_but_prints_a_summary(make_run: MakeRun) -> None:
    facts = {"command": "pretrain", "arguments": ["pretrain", "--text", "my file", "--json"]}
    run = read_run(make_run(run_json=json.dumps(facts)))
    assert repeating_command(run) == "llmkit pretrain --text 'my file'"
    assert using_command(run) == ""


def test_the_model_is_used_by_what_it_does_and_named_without_folders(make_run: MakeRun) -> None:
    def command(name: str, run_dir: str, objective: str) -> str:
        facts = {"command": "finetune", "result": {"run_dir": run_dir}}
        config = yaml.safe_dump({"train": {"objective": objective}})
        return using_command(
            read_run(make_run(name, run_json=json.dumps(facts), config_yaml=config))
        )

    assert command("a", "runs/a", "auto") == "llmkit predict --model runs/a --csv new.csv"
    assert command("b", "/home/me/b", "causal") == "llmkit generate --model b --prompt ..."
    assert "[MASK]" in command("c", "runs/c", "masked")
