"""`--dry-run` says the steps, the time and the memory that the run then takes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Server
from tests.jobs import WORDS, tiny, write_table

LEARNED = 200
"""Lines of text."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chance = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(" ".join(chance.choices(WORDS, k=20)) + "\n" for _ in range(LEARNED)))
    return path


def told(trials: Server, *line: object) -> dict[str, Any]:
    ended = trials.run(*line, "--json", "--quiet")
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def expected(trials: Server, *line: object) -> dict[str, Any]:
    found: dict[str, Any] = told(trials, *line, "--dry-run")["expected"]
    return found


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_the_steps_of_an_epoch_are_near_those_of_the_run(
    trials: Server, text: Path, tmp_path: Path, objective: str
) -> None:
    line = ("pretrain", "--text", text, *tiny(f"train.objective={objective}"))
    found = expected(trials, *line)
    run = told(trials, *line, "--output-dir", tmp_path / "run")
    assert found["steps"] == pytest.approx(run["step"], rel=0.05)
    assert found["steps_exact"] is False
    assert found["seconds"] > 0
    timing = (tmp_path / "run" / "timing.jsonl").read_text().splitlines()
    peak = max(json.loads(line)["memory_bytes"] for line in timing)
    assert found["memory_bytes"] == pytest.approx(peak, rel=0.5)
    assert found["micro_batch_size"] == 4


def test_a_mixture_counts_the_domains_that_are_learned(trials: Server, text: Path) -> None:
    mixture = {
        "learned": {"files": str(text), "weight": 1},
        "also": {"files": str(text), "weight": 2},
        "measured": {"validation_files": str(text), "weight": 0},
    }
    line = ("pretrain", f"data.mixture={json.dumps(mixture)}", *tiny())
    both = expected(trials, *line)["steps"]
    one = expected(trials, "pretrain", "--text", text, *tiny())["steps"]
    assert both == pytest.approx(2 * one, abs=2)


def test_a_run_that_has_begun_expects_the_rest_of_its_steps(
    trials: Server, text: Path, tmp_path: Path
) -> None:
    line = ("pretrain", "--text", text, *tiny(), "--output-dir", tmp_path / "run")
    assert told(trials, *line, "train.max_steps=3")["step"] == 3
    longer = (*line, "train.max_steps=6")
    found = expected(trials, *longer)
    assert (found["steps"], found["steps_done"], found["steps_exact"]) == (6, 3, True)
    ended = trials.run(*longer, "--dry-run")
    assert "expected: 6 steps, of which 3 are done; by estimate 0:0" in ended.out
    assert " GB of memory" in ended.out


def test_a_time_limit_bounds_steps_and_time(trials: Server, text: Path) -> None:
    line = ("pretrain", "--text", text, *tiny())
    found = expected(trials, *line, "train.max_minutes=0.5")
    assert 0 < found["steps"] <= 700
    assert found["seconds"] <= 30
    assert found["steps_exact"] is False


def test_fewer_trained_weights_need_less_memory(trials: Server, tmp_path: Path, text: Path) -> None:
    wide = tiny("model.config.hidden_size=256", "train.max_steps=1")
    base = told(trials, "pretrain", "--text", text, *wide, "--output-dir", tmp_path / "base")
    rows = [
        (f"fine {number}" if number % 2 else f"bad {number}", number % 2) for number in range(40)
    ]
    table = write_table(tmp_path / "rows.csv", rows)
    line = ("finetune", "--csv", table, "--model", base["model_dir"], "train.num_train_epochs=2")
    whole, head = expected(trials, *line), expected(trials, *line, "train.freeze=body")
    assert head["memory_bytes"] < whole["memory_bytes"]
    assert whole["steps_exact"] is True
    run = told(trials, *line, "train.compile=false", "--output-dir", tmp_path / "run")
    assert whole["steps"] == run["step"]


def test_a_model_that_the_machine_cannot_hold_is_warned_of(trials: Server, text: Path) -> None:
    report = told(trials, "pretrain", "--text", text, "model.size=100B", "--dry-run")
    assert any("the run needs about" in warning for warning in report["warnings"])
