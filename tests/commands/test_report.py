"""`llmkit report` and what a finished run hands on: its page and its card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.jobs import tiny

from .conftest import Run


@pytest.fixture(scope="module")
def runs(llmkit: Run, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ in their learning rate."""
    root = tmp_path_factory.mktemp("runs")
    for rate in ("1e-3", "1e-2"):
        done = llmkit("pretrain", "--text", corpus, "-o", root / rate, "train.max_steps=2",
                      f"train.learning_rate={rate}", *tiny())  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"report   {root / rate}/report.html" in done.stdout
    return [root / "1e-3", root / "1e-2"]


def test_a_finished_run_leaves_its_page_and_its_card(runs: list[Path]) -> None:
    page = (runs[0] / "report.html").read_text()
    facts = json.loads((runs[0] / "run.json").read_text())
    assert "unfinished" not in page
    assert f"{facts['result']['validation']['perplexity']:.4g}" in page
    assert {"date", "host", "device", "notes", "warnings", "result"} <= facts.keys()
    card = ModelCard.load(runs[0] / "final" / "README.md")
    values = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert values["perplexity"] == facts["result"]["validation"]["perplexity"]


def test_a_finished_run_that_is_repeated_keeps_its_records(
    llmkit: Run, corpus: Path, runs: list[Path]
) -> None:
    kept = [
        runs[0] / name for name in ("run.json", "config.yaml", "report.html", "final/README.md")
    ]
    (runs[0] / "final" / "README.md").write_text("mine")
    before = [path.read_bytes() for path in kept]
    own = ("train.max_steps=2", "train.learning_rate=1e-3", "train.logging_steps=1")
    done = llmkit("pretrain", "--text", corpus, "-o", runs[0], *own, *tiny(), "--json")
    assert done.returncode == 0, done.stderr
    assert [path.read_bytes() for path in kept] == before
    printed, facts = json.loads(done.stdout), json.loads(kept[0].read_text())
    assert facts["result"].pop("tokens_per_second") > 0
    assert {**facts["result"], "warnings": printed["warnings"]} == printed
    assert printed["warnings"] == facts["warnings"] != []


def test_the_data_of_text_are_counted_as_trained_on_and_held_out(
    corpus: Path, runs: list[Path]
) -> None:
    report = json.loads((runs[0] / "run.json").read_text())["data"]["text"][""]
    sizes = [report[name]["bytes"] for name in ("train", "validation")]
    assert sum(sizes) == pytest.approx(corpus.stat().st_size, abs=2)
    assert sizes[0] > sizes[1] > 0
    assert report["validation"]["files"] == ["corpus.txt"]
    assert report["validation"]["overlap"] is None


def test_the_origins_say_what_was_given_and_what_auto_chose(runs: list[Path]) -> None:
    origins = json.loads((runs[0] / "run.json").read_text())["origins"]
    assert origins["train.learning_rate"] == "given"
    assert origins["train.optimizer"] == "auto"
    assert "train.adam_beta1" not in origins


def test_several_runs_are_compared_in_a_page(llmkit: Run, runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "both.html"
    done = llmkit("report", *runs, "--output", page, "--json")
    assert json.loads(done.stdout)["page"] == str(page)
    assert "learning_rate" in page.read_text()
    assert llmkit("report", *runs, "--output", page).returncode == 0  # its own page is replaced


def test_an_evaluation_is_shown_with_the_run_that_it_measured(
    llmkit: Run, corpus: Path, runs: list[Path], tmp_path: Path
) -> None:
    result, page = tmp_path / "result.json", tmp_path / "page.html"
    measured = ("evaluate", "--model", runs[0], "--text", corpus, "--output", result)
    assert llmkit(*measured, "--quiet").returncode == 0
    done = llmkit("report", *runs, result, "--output", page)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.count("Evaluation: result.json") == 1
    assert text.index("Evaluation: result.json") < text.index('<article id="run-2">')
    refused = llmkit("report", runs[1], result, "--output", page)
    assert refused.returncode == 2
    assert "which is none of the runs" in refused.stderr
    result.write_text('{"command": "evaluate"')
    assert llmkit("report", runs[0], result, "--output", page).returncode == 65


def test_the_page_is_opened_in_a_browser(
    llmkit: Run, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = tmp_path / "opened"
    viewer = tmp_path / "viewer"
    viewer.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    viewer.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(viewer))
    command = [sys.executable, "-m", "llmkit", "report", str(runs[0]), "--open"]
    subprocess.run(command, check=True, capture_output=True)
    assert opened.read_text().strip() == (runs[0] / "report.html").resolve().as_uri()


def test_a_file_that_no_report_wrote_is_kept(llmkit: Run, runs: list[Path], tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    done = llmkit("report", runs[0], "--output", mine)
    assert done.returncode == 73
    assert mine.read_text() == "mine"


def test_a_report_without_runs_names_the_command(llmkit: Run, tmp_path: Path) -> None:
    assert "llmkit report runs/" in llmkit("report").stderr
    assert llmkit("report").returncode == 2
    assert llmkit("report", tmp_path / "nothing").returncode == 66
