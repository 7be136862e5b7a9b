"""The Transformer of one's own on the command line: trained, resumed, written with, measured."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.jobs import CONFIGS, assert_close, assert_same, metrics, tiny

from .conftest import Run

SIZES = tiny("model.config.num_attention_heads=2", "data.document=line", "train.max_steps=12",
             "train.save_steps=4", "train.eval_steps=6", "train.logging_steps=3")  # fmt: skip


@pytest.fixture(scope="module")
def command(corpus: Path) -> Callable[..., list[object]]:
    """The command line of a run of the config that we ship, small and with some changes."""

    def line(run: Path, *changes: str) -> list[object]:
        config = CONFIGS / "pretrain-transformer.yaml"
        return ["pretrain", config, "--text", corpus, *SIZES, "--output-dir", run, *changes]

    return line


@pytest.fixture(scope="module")
def paper(llmkit: Run, command, tmp_path_factory) -> Path:
    """An uninterrupted run with the settings of the paper, dropout among them."""
    return run_to_end(llmkit, command(tmp_path_factory.mktemp("runs") / "paper"))


@pytest.fixture(scope="module")
def rotary(llmkit: Run, command, tmp_path_factory) -> Path:
    """The same with rotary positions and without dropout."""
    run = tmp_path_factory.mktemp("runs") / "rotary"
    return run_to_end(llmkit, command(run, *ROTARY))


ROTARY = ("model.config.position_embedding=rotary", "model.config.hidden_dropout=0.0",
          "model.config.attention_dropout=0.0")  # fmt: skip


def run_to_end(llmkit: Run, command: list[object], processes: int = 1) -> Path:
    done = llmkit(*command, "--json", processes=processes)
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["run_dir"])


def test_it_learns_with_dropout_over_packed_documents(paper: Path) -> None:
    losses = [line["train_loss"] for line in metrics(paper) if "train_loss" in line]
    assert losses[-1] < losses[0]


def test_a_second_run_is_bit_identical(paper, llmkit, command, tmp_path) -> None:
    assert_same(run_to_end(llmkit, command(tmp_path / "run")), paper)


def test_a_killed_run_resumes_bit_identically(paper, llmkit, trials, command, tmp_path) -> None:
    run = tmp_path / "killed"
    process = trials.start(*command(run))
    process.until_lines(run / "metrics.jsonl", 2)
    process.end(signal.SIGKILL)
    assert_same(run_to_end(llmkit, command(run)), paper)


def test_the_micro_batch_changes_nothing(rotary, llmkit, command, tmp_path) -> None:
    line = [part for part in command(tmp_path / "run", *ROTARY)
            if not str(part).startswith("train.micro_batch_size")]  # fmt: skip
    assert_close(run_to_end(llmkit, [*line, "train.micro_batch_size=1"]), rotary)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(rotary, llmkit, command, tmp_path) -> None:
    assert_close(run_to_end(llmkit, command(tmp_path / "two", *ROTARY), processes=2), rotary)


@pytest.mark.slow
def test_its_card_loads_it_with_plain_transformers(rotary: Path) -> None:
    card = (rotary / "final" / "README.md").read_text()
    assert "import llmkit.models.transformer" in card
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace(f'"{rotary.name}"', f'"{rotary.name}/final"')
    code += "print(type(model).__name__, len(tokenizer))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=rotary.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2] == "TransformerForCausalLM"


def test_it_writes_text(rotary: Path, llmkit: Run) -> None:
    done = llmkit("generate", "--model", rotary, "--prompt", "the cat", "--json",
                  "generation.max_new_tokens=5", "generation.do_sample=false")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["tokens"]) == 5


@pytest.mark.slow
def test_evaluate_gives_what_validation_gave(rotary, llmkit, command, corpus, tmp_path) -> None:
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("".join(corpus.read_text().splitlines(keepends=True)[:9]))
    files = (f"data.validation_files={held_out}", "train.precision=fp32", *ROTARY)
    run = run_to_end(llmkit, command(tmp_path / "run", *files))
    done = llmkit("evaluate", "--model", run, "--text", held_out, "data.document=line",
                  "evaluation.precision=fp32", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    validated = [m["validation_perplexity"] for m in metrics(run) if "validation_loss" in m]
    assert json.loads(done.stdout)["perplexity"] == pytest.approx(validated[-1], rel=1e-4)


@pytest.mark.slow
def test_a_classifier_is_made_from_it(rotary: Path, llmkit: Run, tmp_path: Path) -> None:
    rows = [f"{word} {number},{word}" for number in range(12) for word in ("cat", "dog")]
    table = tmp_path / "rows.csv"
    table.write_text("\n".join(["text,label", *rows]) + "\n")
    done = llmkit("finetune", "--csv", table, "--model", rotary, "train.max_steps=4", "--json",
                  "train.global_batch_size=8", "train.compile=false", "data.max_length=12",
                  "--output-dir", tmp_path / "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = llmkit("predict", "--model", tmp_path / "run", "--csv", table, "--json")
    assert said.returncode == 0, said.stderr
    assert {json.loads(line)["label"] for line in said.stdout.splitlines()} <= {"cat", "dog"}


def test_an_architecture_of_a_users_own_runs_where_it_is_allowed(
    llmkit: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    command = ("pretrain", CONFIGS / "pretrain-own.yaml", "--text", corpus, *SIZES,
               "train.max_steps=3", "--output-dir", tmp_path / "run")  # fmt: skip
    command = tuple(part for part in command if part != "train.max_steps=12")
    refused = llmkit(*command)
    assert refused.returncode == 77
    assert "--allow-code" in refused.stderr
    run_to_end(llmkit, [*command, "--allow-code"])
    config = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    assert config["architectures"] == ["ParallelForCausalLM"]
    measure = ("evaluate", "--model", tmp_path / "run", "--text", corpus, "data.document=line")
    code = ("model.code=configs/parallel.py", "--allow-code", "--json")
    unknown, measured = llmkit(*measure), llmkit(*measure, *code)
    assert unknown.returncode == 65
    assert "model.code" in unknown.stderr
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["perplexity"] > 1
