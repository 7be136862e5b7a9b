"""Plots show what they are given: the best validation, the pairs that are confused most."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import image

from llmkit.reporting import plots

RECORDS = [
    {"step": 1, "train_loss": 3.0},
    {"step": 2, "train_loss": 2.0, "validation_loss": 2.5, "validation_loss/poems": 2.9},
    {"step": 3, "train_loss": 1.0, "validation_loss": 2.25, "validation_loss/poems": 2.8},
    {"step": 4, "train_loss": 0.5, "validation_loss": 2.75, "validation_loss/poems": None},
]


def test_the_lowest_validation_is_marked_and_each_domain_has_a_curve() -> None:
    figure = plots.draw_curve(RECORDS, "nats per token")
    curves = {line.get_label(): line for line in figure.axes[0].lines}
    marked = curves.pop("best validation loss: 2.250 at step 3")
    assert set(marked.get_xdata()) == {3}
    assert curves["training"].get_xydata().tolist() == [[1, 3], [2, 2], [3, 1], [4, 0.5]]
    assert curves["validation"].get_xydata().tolist() == [[2, 2.5], [3, 2.25], [4, 2.75]]
    assert curves["poems"].get_xydata().tolist() == [[2, 2.9], [3, 2.8]]
    plots.as_svg(figure)


def test_scores_of_a_classifier_have_a_panel_below_the_loss() -> None:
    scored = [{**record, "validation_accuracy": 0.1 * record["step"]} for record in RECORDS]
    figure = plots.draw_curve(scored, "nats per row", "accuracy")
    line, best = figure.axes[1].lines
    assert best.get_label() == "best validation accuracy: 0.400 at step 4"
    assert set(best.get_xdata()) == {4}
    assert line.get_label() == "validation accuracy"
    assert line.get_ydata() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    plots.as_svg(figure)


def test_nats_per_token_have_a_second_axis_of_perplexity() -> None:
    figure = plots.draw_curve(RECORDS, plots.NATS_PER_TOKEN)
    (beside,) = figure.axes[0].child_axes
    low, high = figure.axes[0].get_ylim()
    ticks = beside.get_yticks()
    assert len(ticks) > 2
    assert all(math.exp(low) <= tick <= math.exp(high) for tick in ticks)
    assert not plots.draw_curve(RECORDS, "nats per example").axes[0].child_axes


@pytest.mark.parametrize("high", [3.0, 20.0, 1e3, 1e9, 1e30])
def test_the_ticks_of_a_wide_range_are_few_and_round(high: float) -> None:
    ticks = plots._ticks_between(1.5, high)
    assert len(ticks) <= plots._MAX_TICKS
    assert all(1.5 <= tick <= high for tick in ticks)
    assert all(float(f"{tick:.0e}") == pytest.approx(tick) for tick in ticks)


def test_the_best_step_goes_by_the_metric_and_not_by_the_start() -> None:
    records = [
        {"step": 0, "validation_loss": 1.0, "validation_f1_macro": 0.9},
        {"step": 1, "validation_loss": 2.0, "validation_f1_macro": 0.2},
        {"step": 2, "validation_loss": 3.0, "validation_f1_macro": 0.4},
    ]
    assert plots.best_validation(records, "loss") == (1, 2.0)
    assert plots.best_validation(records, "f1_macro") == (2, 0.4)
    assert plots.best_validation(records[:1], "loss") == (0, 1.0)
    assert plots.best_validation(records, "accuracy") is None


def test_bars_begin_at_zero_and_dots_show_differences() -> None:
    rows = [
        plots.PlottedFigure("model", 0.9, (0.85, 0.95)),
        plots.PlottedFigure("baseline", 0.88, is_beside=True),
    ]
    bars = plots.draw_intervals(rows, "accuracy", bars=True).axes[0]
    assert [patch.get_width() for patch in bars.patches] == [0.9, 0.88]
    assert bars.get_xlim()[0] == 0
    assert [list(line.get_xdata()) for line in bars.lines] == [[0.85, 0.95]]
    dots = plots.draw_intervals(rows, "accuracy", bars=False).axes[0]
    assert dots.get_xlim()[0] > 0.8


def test_colours_of_a_drawing_are_those_of_the_page() -> None:
    scored = [{**record, "validation_accuracy": 0.5} for record in RECORDS]
    drawn = plots.as_svg(plots.draw_curve(scored, plots.NATS_PER_TOKEN))
    assert "var(--series-1)" in drawn
    assert "var(--muted)" in drawn
    assert not [color for color in (*plots.SERIES, plots.MUTED, "#000000") if color in drawn]


def test_curves_of_runs_share_a_colour_for_training_and_validation() -> None:
    curves = {
        name: plots.RunCurve(([2, 4], [3.0, 2.0]), ([1, 2], [4.0, 3.0])) for name in ("a", "b")
    }
    lines = plots.draw_curves(curves, "step", "loss").axes[0].lines
    assert [line.get_color() for line in lines] == [*2 * [plots.SERIES[0]], *2 * [plots.SERIES[1]]]
    assert [line.get_label() for line in lines[1::2]] == ["a", "b"]


@pytest.mark.parametrize("n_classes", [2, plots.WITH_CELLS, plots.WITH_CELLS + 1])
def test_pictures_are_whole_and_nothing_else_is_left(tmp_path: Path, n_classes: int) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    plots.draw_loss_curve(metrics, tmp_path / "loss.png", "title")
    counts = [[3 * (a == b) + (a < b) for b in range(n_classes)] for a in range(n_classes)]
    names = [f"class {number}" for number in range(n_classes)]
    plots.draw_confusion_matrix(counts, names, tmp_path / "matrix.png", "title")
    assert {path.name for path in tmp_path.iterdir()} == {"loss.png", "matrix.png", "metrics.jsonl"}
    for name in ("loss.png", "matrix.png"):
        assert image.imread(tmp_path / name).std() > 0


@pytest.mark.parametrize("backend", ["svg", "nonsense"])
def test_drawing_leaves_the_backend_of_the_process_as_it_was(backend: str, tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from llmkit.reporting import plots\n"
        "plots.draw_confusion_matrix([[3, 1], [2, 5]], ['a', 'b'], Path(sys.argv[1]), 't')\n"
        "import matplotlib\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "chosen = matplotlib.get_backend(auto_select=False)\n"
        "print(os.environ['MPLBACKEND'], chosen)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "picture.png")]
    environment = {**os.environ, "MPLBACKEND": backend}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == ("svg svg\n" if backend == "svg" else "nonsense None\n")
