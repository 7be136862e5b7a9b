"""A line of progress fits the terminal, and is never a full bar while work goes on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from llmkit.reporting.progress.progress_line import ProgressLine

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
def test_a_bar_is_never_full_while_work_continues(width: int, label: str) -> None:
    (line,) = progress_at(width, label, 1.0)
    assert f"{label}…" in line
    assert "100%" not in line
    assert "━" not in line


def progress_at(width: int, label: str, share: float) -> list[str]:
    """The screen of this width when this share of the work is done."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, _environ={})
    with Progress(ProgressLine(console), console=console, auto_refresh=False) as progress:
        task = progress.add_task(label, total=200)
        for _ in range(4):
            progress.advance(task, 50 * share)
        page = Console(file=io.StringIO(), width=width, _environ={})
        with page.capture() as shown:
            page.print(progress.get_renderable())
    return [line.rstrip() for line in shown.get().splitlines()]
