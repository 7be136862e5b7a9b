"""What is shown of a run that is under way changes nothing in it, and fits on the screen."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as RichConsole

from llmkit.reporting.console import Console
from llmkit.reporting.training_display import TrainingDisplay, training_display

FIGURES = {"train_loss": 5.3211, "learning_rate": 0.0021654, "grad_norm": 0.51542}


def screen(width: int, steps: int) -> tuple[str, str]:
    """The line on a terminal of this width, before a step and after one that was logged."""
    console = Console()
    console.stderr = RichConsole(file=io.StringIO(), width=width, force_terminal=True, _environ={})

    def line(display: TrainingDisplay) -> str:
        assert display.progress is not None
        page = RichConsole(file=io.StringIO(), width=width, _environ={})
        with page.capture() as shown:
            page.print(display.progress.get_renderable())
        return shown.get().rstrip()

    with training_display(console, 0, steps) as display:
        before = line(display)
        display.log(steps // 2, steps, FIGURES, ["17,368 tokens/s", "mfu 12%"])
        return before, line(display)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("steps", [35, 12_000, 1_234_567])
def test_step_time_left_and_loss_always_have_room(width: int, steps: int) -> None:
    before, after = screen(width, steps)
    assert f"0/{steps}" in before
    assert len(after) <= width
    assert "\n" not in after
    for part in (f"step {steps // 2}/{steps}", "━", "left", "loss 5.321"):
        assert part in after
    assert ("grad norm 0.5154" in after, "mfu 12%" in after) == (width == 160, width == 160)
