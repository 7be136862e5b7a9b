"""The table of several runs: a cell for each heading, sortable values, differences in pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.reporting.held_out import OF_LABELS, HeldOut, write_held_out
from llmkit.reporting.page.comparison_table import comparison_section
from llmkit.reporting.page.run_comparison import RunComparison
from llmkit.reporting.run_record import RunRecord, read_run
from tests.conftest import MakeRun


def section(*runs: RunRecord) -> dict[str, Any]:
    return comparison_section(RunComparison(runs), [f"run-{n}" for n, _ in enumerate(runs)])


def keep_rows(directory: Path, right: int) -> Path:
    """The outcome of ten held-out rows, of which the first are right."""
    label = np.zeros(10, int)
    columns = {"unit": np.arange(10), "label": label, "predicted": (np.arange(10) >= right) * 1,
               "loss": np.ones(10)}  # fmt: skip
    write_held_out(directory, HeldOut(OF_LABELS, "rows", columns, ("a", "b")))
    return directory


def test_a_row_has_a_cell_for_each_heading(make_run: MakeRun) -> None:
    found = section(read_run(make_run("first", 0.7)), read_run(make_run("second", 0.8)))
    names = [head["name"] for head in found["headings"]]
    assert names == ["run", "accuracy", "learning_rate", "loss"]
    assert [[cell["text"] for cell in row["cells"]] for row in found["rows"]] == [
        ["0.7", "0.7", "0.5"], ["0.8", "0.8", "0.5"],
    ]  # fmt: skip
    assert [row["note"] for row in found["rows"]] == ["", " (best)"]


def test_the_difference_in_pairs_is_a_column(make_run: MakeRun) -> None:
    runs = [read_run(keep_rows(make_run(name, n / 10), n)) for name, n in (("a", 6), ("b", 9))]
    found = section(*runs)
    assert [head["name"] for head in found["headings"]][2] == "difference from the best"
    first, second = (row["cells"][1] for row in found["rows"])
    assert first["text"] == "\N{MINUS SIGN}0.3"
    assert first["interval"].startswith("(\N{MINUS SIGN}")
    assert (second["text"], second["value"]) == ("", 0.0)


@pytest.mark.parametrize("value", [math.nan, None])
def test_a_figure_that_is_missing_or_not_finite_has_no_value_to_sort_by(
    make_run: MakeRun, value: float | None
) -> None:
    measured = {"validation": {"accuracy": value, "loss": 0.5}}
    broken = read_run(make_run("broken", evaluation_json=json.dumps(measured)))
    cell = section(read_run(make_run("good", 0.7)), broken)["rows"][1]["cells"][0]
    assert (cell["text"], cell["value"]) == ("" if value is None else "nan", None)


def test_an_unfinished_run_is_called_unfinished(make_run: MakeRun) -> None:
    facts = json.dumps({"command": "finetune"})
    half = read_run(make_run("half", 0.99, run_json=facts))
    assert section(read_run(make_run("whole", 0.7)), half)["rows"][1]["note"] == " (unfinished)"


def test_keys_of_the_same_name_are_shown_in_full(make_run: MakeRun) -> None:
    config = "train: {{dropout: {0}}}\nmodel: {{dropout: {0}}}\n"
    runs = [read_run(make_run(name, 0.7, config_yaml=config.format(name))) for name in ("1", "2")]
    names = [head["name"] for head in section(*runs)["headings"]]
    assert names[2:4] == ["train.dropout", "model.dropout"]


def test_paths_lose_their_folders(make_run: MakeRun) -> None:
    config = "data: {{validation_files: [/home/me/{}.csv]}}\n"
    runs = [read_run(make_run(name, 0.7, config_yaml=config.format(name))) for name in "ab"]
    assert [row["cells"][1]["text"] for row in section(*runs)["rows"]] == ["a.csv", "b.csv"]


def test_domains_of_runs_stand_side_by_side_with_the_best_marked(make_run: MakeRun) -> None:
    def run(name: str, code: float, poems: float) -> RunRecord:
        domains = {
            "code": {"after": {"bits_per_byte": code}},
            "poems": {"after": {"bits_per_byte": poems}},
        }
        facts = {"command": "pretrain", "result": {"domains": domains, "validation": {"loss": 1}}}
        return read_run(make_run(name, run_json=json.dumps(facts), evaluation_json=None))

    found = section(run("a", 1.0, 3.0), run("b", 2.0, 2.5))["domains"]
    assert found["runs"] == ["a", "b"]
    assert [[cell["best"] for cell in row["cells"]] for row in found["rows"]] == [
        [True, False], [False, True],
    ]  # fmt: skip
