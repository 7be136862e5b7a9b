"""What machines and people are shown of a command's warnings and result."""

from __future__ import annotations

import io
import json
import time

import pytest
from rich.console import Console as RichConsole
from rich.progress import Progress

from llmkit.reporting.console import Console, ProgressLine


def test_the_json_result_lists_each_warning_once(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json=True)
    console.warn("the held-out text is small")
    console.warn("the run is short")
    console.warn("the run is short")
    console.result({"step": 3})
    shown = capsys.readouterr()
    warnings = ["the held-out text is small", "the run is short"]
    assert json.loads(shown.out) == {"step": 3, "warnings": warnings}
    assert shown.err.count("warning: the run is short") == 2


def test_a_result_without_warnings_has_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    Console(json=True).result({})
    assert json.loads(capsys.readouterr().out) == {"warnings": []}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_person_is_told_while_the_libraries_load_and_a_pipe_is_not(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("llmkit.reporting.console.LOADING_SECONDS", 0.01)
    console = Console()
    shown = io.StringIO()
    console.stderr = RichConsole(file=shown, force_terminal=terminal)
    with console.loading():
        time.sleep(0.2)
    assert ("loading torch and transformers" in shown.getvalue()) is terminal


LABELS = ["tokenizing", "looking for prepared data", "training a tokenizer"]


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("label", [*LABELS, "reading data.mixture.conversations.validation_files"])
def test_progress_fits_on_one_line(width: int, label: str) -> None:
    shown = progress_at(width, label, 0.5)
    assert len(shown) == 1
    assert len(shown[0]) <= width
    assert label[:20] in shown[0]
    assert "50%" in shown[0] or label not in LABELS
    assert "━" in shown[0] or width == 40


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("label", LABELS)
def test_a_bar_is_never_full_while_work_goes_on(width: int, label: str) -> None:
    (line,) = progress_at(width, label, 1.0)
    assert f"{label}…" in line
    assert "100%" not in line
    assert "━" not in line


def progress_at(width: int, label: str, share: float) -> list[str]:
    """The screen of this width when this share of the work is done."""
    console = RichConsole(file=io.StringIO(), width=width, force_terminal=True, _environ={})
    with Progress(ProgressLine(console), console=console, auto_refresh=False) as progress:
        task = progress.add_task(label, total=200)
        for _ in range(4):
            progress.advance(task, 50 * share)
        page = RichConsole(file=io.StringIO(), width=width, _environ={})
        with page.capture() as shown:
            page.print(progress.get_renderable())
    return [line.rstrip() for line in shown.get().splitlines()]
