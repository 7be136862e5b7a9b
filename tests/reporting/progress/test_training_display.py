"""What is shown of a run that is under way changes nothing in it, and fits on the screen."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console as RichConsole

from llmkit.reporting.console import Console
from llmkit.reporting.progress.training_display import TrainingDisplay, training_display

FIGURES = {"train_loss": 5.3211, "learning_rate": 0.0021654, "grad_norm": 0.51542}
SPEED = ["17,368 tokens/s", "mfu 12%"]


@contextmanager
def running(width: int, total: int, compiles: bool = False) -> Iterator[TrainingDisplay]:
    """The display of a run that begins, on a terminal of this width."""
    console = Console()
    console.stderr = RichConsole(file=io.StringIO(), width=width, force_terminal=True, _environ={})
    with training_display(console, 0, total, compiles) as display:
        yield display


def lines(display: TrainingDisplay) -> list[str]:
    """What the display now shows on the screen."""
    assert display.progress is not None
    width = display.console.stderr.width
    page = RichConsole(file=io.StringIO(), width=width, _environ={})
    with page.capture() as shown:
        page.print(display.progress.get_renderable())
    found = [line.rstrip() for line in shown.get().splitlines()]
    assert all(len(line) <= width for line in found)
    return found


def screen(width: int, steps: int) -> tuple[list[str], list[str]]:
    """The lines before a step and after one that was logged."""
    with running(width, steps) as display:
        before = lines(display)
        display.step(1, steps)
        display.log(steps // 2, steps, FIGURES, SPEED)
        return before, lines(display)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("steps", [35, 12_000, 1_234_567])
def test_step_bar_time_left_and_loss_always_have_room(width: int, steps: int) -> None:
    (before,), (after,) = screen(width, steps)
    assert f"0/{steps}" in before
    for part in (f"step {steps // 2}/{steps}", "━", "left", "loss 5.321"):
        assert part in after
    assert ("grad norm 0.5154" in after, "mfu 12%" in after) == (width == 160, width == 160)


@pytest.mark.parametrize("steps", [35, 12_000, 1_234_567])
def test_forty_columns_hold_step_time_left_and_loss(steps: int) -> None:
    (before,), (after,) = screen(40, steps)
    assert f"0/{steps}" in before
    assert f"{steps // 2}/{steps}" in after
    assert ":" in after
    assert "loss 5.321" in after
    assert "…" not in after


def test_no_bar_is_full_while_the_last_validation_runs() -> None:
    with running(80, 20) as display:
        display.log(20, 20, FIGURES, SPEED)
        with display.watch("validation", 4) as advance:
            advance(1)
            first, second = lines(display)
            assert "step 20/20" in first
            assert "━" not in first
            assert "validation 25%" in second
            assert "━" in second
            advance(3)
            assert "━" not in lines(display)[1]
            assert "validation…" in lines(display)[1]


def test_what_delays_the_first_step_is_named_until_there_is_a_loss() -> None:
    with running(80, 20, compiles=True) as display:
        assert "step 0/20 compiling the model" in " ".join(
            lines(display)[0].replace("━", "").split()
        )
        assert "left" not in lines(display)[0]
        display.log(1, 20, FIGURES, SPEED)
        assert "compiling" not in lines(display)[0]


def test_the_time_left_does_not_count_the_first_step() -> None:
    with running(80, 20) as display:
        display.step(1, 20)
        assert display.left(1, 20) == ""
        display.began = None if display.began is None else display.began - 10.0
        assert display.left(3, 20) == "1:25 left"


def test_an_estimated_number_of_steps_is_marked() -> None:
    with running(80, 20) as display:
        display.is_estimate = True
        display.step(3, 20)
        assert "step 3/~20" in lines(display)[0]


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {}])
def test_lines_are_plain_without_a_terminal_that_can_redraw(environment: dict[str, str]) -> None:
    console, page = Console(), io.StringIO()
    terminal = bool(environment)
    console.stderr = RichConsole(
        file=page, force_terminal=terminal, soft_wrap=True, _environ=environment
    )
    with training_display(console, 0, 20) as display:
        display.log(10, 20, FIGURES, SPEED)
        with display.watch("validation", 4) as advance:
            advance(4)
    assert page.getvalue().startswith("step 10/20  loss 5.321  17,368 tokens/s")
    assert page.getvalue().count("\n") == 1
    assert "\x1b" not in page.getvalue()
