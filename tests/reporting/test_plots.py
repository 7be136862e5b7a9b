"""Plots show what they are given: the best validation, the pairs that are confused most."""

from __future__ import annotations

import json
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


def test_the_lowest_validation_is_marked_and_domains_have_curves_of_their_own() -> None:
    figure = plots.draw_curve(RECORDS, "nats per token")
    curves = {line.get_label(): line for line in figure.axes[0].lines}
    marked = curves.pop("lowest validation loss: 2.250 at step 3")
    assert set(marked.get_xdata()) == {3}
    assert curves["training"].get_xydata().tolist() == [[1, 3], [2, 2], [3, 1], [4, 0.5]]
    assert curves["validation"].get_xydata().tolist() == [[2, 2.5], [3, 2.25], [4, 2.75]]
    assert curves["poems"].get_xydata().tolist() == [[2, 2.9], [3, 2.8]]
    plots.as_svg(figure)


def test_scores_of_a_classifier_have_a_panel_below_the_loss() -> None:
    scored = [{**record, "validation_accuracy": 0.1 * record["step"]} for record in RECORDS]
    figure = plots.draw_curve(scored, "nats per row")
    [line] = figure.axes[1].lines
    assert line.get_label() == "validation accuracy"
    assert line.get_ydata() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    plots.as_svg(figure)


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
