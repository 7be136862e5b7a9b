"""A run is given the same command again, more to do, less to do, or something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmkit.cli import app
from tests.jobs import assert_same, metrics, tiny, write_table

KEYS = ("train.precision=fp32", "train.save_steps=4", "data.block_size=16")
TASKS = ("pretrain", "masked", "mixture", "classification", "completion")


@pytest.fixture(scope="module")
def base(corpus, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    keys = tiny("train.max_steps=1", "data.block_size=64")
    command = ("pretrain", "--text", corpus, *keys, "--output-dir", run)
    assert app.run_command([*map(str, command), "--quiet"]) == 0
    return run


@pytest.fixture(scope="module")
def commands(corpus, base, tmp_path_factory) -> dict[str, Sequence[object]]:
    """A command of each task, without its length and its directory."""
    directory = tmp_path_factory.mktemp("tables")
    lines = corpus.read_text().splitlines()
    rows = [(line, line.split()[0], "dog" if "dog" in line else "cat") for line in lines]
    write_table(directory / "rows.csv", rows, ("prompt", "response", "label"))
    other = directory / "other.txt"
    other.write_text("\n".join(reversed(lines)) + "\n")
    tune = ("train.global_batch_size=8", "train.compile=false", "train.precision=fp32")
    words = ("data.mixture.words.files=" + str(corpus), "data.mixture.others.files=" + str(other))
    table = ("finetune", "--csv", directory / "rows.csv", *tune, "train.save_steps=4")
    labels = ("data.text_column=prompt", "data.label_column=label", "tokenizer.vocab_size=300")
    shape = ("model.config.hidden_size=32", "model.config.num_hidden_layers=1")
    causal = [key for key in tiny(*KEYS, "data.document=line") if "micro_batch" not in key]
    return {
        "pretrain": ("pretrain", "--text", corpus, *causal),
        "masked": ("pretrain", "--text", corpus, *causal, "train.objective=masked"),
        "mixture": ("pretrain", *words, *causal),
        "classification": (*table, *labels, *shape),
        "completion": (*table, "--model", base, "train.objective=completion",
                       "data.block_size=64", "generation.max_new_tokens=4"),
    }  # fmt: skip


def times_of_model(run: Path) -> dict[str, int]:
    """When the files of a finished model were written; its card states the last command."""
    files = (path for path in (run / "final").iterdir() if path.name != "README.md")
    return {path.name: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("task", TASKS)
def test_a_finished_run_says_so_and_a_longer_one_continues(task, commands, call, tmp_path) -> None:
    run = tmp_path / "run"
    command = (*commands[task], "--output-dir", run)
    first = call(*command, "train.max_steps=6")
    assert (first["code"], first["step"]) == (0, 6), first["said"]
    files = times_of_model(run)
    again = call(*command, "train.max_steps=6", "train.micro_batch_size=2", "train.logging_steps=7")
    assert (again["code"], again["step"]) == (0, 6), again["said"]
    assert "already finished at step 6: nothing was trained again" in again["said"]
    assert not [key for key in again if key.endswith("_per_second")]
    assert files == times_of_model(run)
    longer = call(*command, "train.max_steps=12")
    assert (longer["code"], longer["step"]) == (0, 12), longer["said"]
    assert "new plan from step 6: 12 steps in total, 6 before" in longer["said"]
    rates = {
        line["step"]: line["learning_rate"] for line in metrics(run) if "learning_rate" in line
    }
    assert rates[7] > rates[6], "the schedule of a finished run has come down to nothing"
    assert rates[12] < rates[7]
    record = json.loads((run / "run.json").read_text())
    assert record["plan"] == [[0, 6], [6, 12]]
    changed = {"train.max_steps": [6, 12]}
    assert record["lengthened"] == [{"step": 6, "changed": changed}]
    assert {"step": 6, "total_steps": 12} in metrics(run)


def test_a_lengthened_run_is_interrupted_and_repeated_bit_identically(
    commands, call, tmp_path
) -> None:
    runs = [tmp_path / name for name in ("whole", "broken")]
    for run in runs:
        command = (*commands["pretrain"], "--output-dir", run)
        assert call(*command, "train.max_steps=6")["code"] == 0
        assert call(*command, "train.max_steps=12")["code"] == 0
    assert_same(*runs)
    # A kill before the last checkpoint leaves this behind.
    shutil.rmtree(runs[1] / "checkpoints" / "step-0000000012")
    shutil.rmtree(runs[1] / "final")
    left = max(path.name for path in (runs[1] / "checkpoints").iterdir())
    assert left > "step-0000000006"
    resumed = call(*commands["pretrain"], "--output-dir", runs[1], "train.max_steps=12")
    assert f"resuming from step {int(left[5:])}" in resumed["said"]
    assert_same(*runs)
    repeat = call("pretrain", runs[0] / "config.yaml", "--output-dir", tmp_path / "repeat")
    assert repeat["step"] == 12, repeat["said"]
    one, other = (
        load_file(run / "final" / "model.safetensors") for run in (runs[0], tmp_path / "repeat")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_less_is_refused_only_where_more_was_done(commands, call, tmp_path) -> None:
    command = (*commands["pretrain"], "--output-dir", tmp_path / "run")
    assert call(*command, "train.max_steps=6")["code"] == 0
    less = call(*command, "train.max_steps=4")
    assert less["code"] == 78
    assert "the run has already done 6 steps, but 4 are asked for" in less["said"]
    other = call(*command, "train.max_steps=9", "seed=3", "train.adam_beta1=0.5")
    assert other["code"] == 78
    for part in (
        "seed was 0, is now 3",
        "train.adam_beta1",
        f"--model {tmp_path / 'run'} --output-dir",
    ):
        assert part in other["said"]
    assert "max_steps was" not in other["said"]


@pytest.mark.parametrize(
    ("before", "after", "steps"),
    [
        (["train.num_train_epochs=1"], ["train.num_train_epochs=2"], (3, 5)),
        (["train.num_train_epochs=1"], ["train.max_steps=5"], (3, 5)),
        ([], ["train.num_train_epochs=2"], (3, 5)),
        # The minutes count from the start of the process, which runs other tests before this one.
        (["train.max_steps=3"], ["train.max_minutes=600", "train.max_steps=8"], (3, 8)),
    ],
)
def test_every_limit_can_be_raised(before, after, steps, commands, call, tmp_path) -> None:
    keys = [key for key in commands["pretrain"] if "global_batch" not in str(key)]
    command = (*keys, "train.global_batch_size=32", "--output-dir", tmp_path / "run")
    first = call(*command, *before)
    assert first["code"] == 0, first["said"]
    longer = call(*command, *after)
    assert longer["code"] == 0, longer["said"]
    found = first["step"], longer["step"]
    assert found == steps, longer["said"]


def test_the_config_of_a_run_repeats_it_with_another_seed_in_another_directory(
    commands, call, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    command = (*commands["pretrain"], "train.max_minutes=0.1", "--output-dir", run)
    first = call(*command)
    assert first["code"] == 0, first["said"]
    again = call("pretrain", run / "config.yaml", "seed=1")
    assert again["code"] == 0, again["said"]
    assert again["step"] == first["step"]
    assert Path(again["run_dir"]).parent == Path("runs")
    record = json.loads((Path(again["run_dir"]) / "run.json").read_text())
    assert record["plan"] == json.loads((run / "run.json").read_text())["plan"]
    for key in ("train.max_minutes=1", "train.max_steps=99999"):
        refused = call("pretrain", run / "config.yaml", key)
        assert refused["code"] == 78
        assert "train.plan=[]" in refused["said"]


def test_the_same_command_among_its_own_runs_is_the_same_run(
    corpus, call, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(corpus, tmp_path / "corpus.txt")
    command = ("pretrain", "--text", ".", *tiny("train.max_steps=2"))
    first, second = call(*command), call(*command)
    assert (first["code"], second["code"]) == (0, 0), second["said"]
    assert first["run_dir"] == second["run_dir"]
    assert "already finished at step 2" in second["said"]
