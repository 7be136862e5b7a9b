"""Which run is best, and what that is worth."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from llmkit.reporting.page.run_comparison import compare_runs, ranked_runs, unlike_data, verdict
from llmkit.reporting.run_record import RunRecord, read_run
from tests.conftest import MakeRun


def seeded(make_run: MakeRun, *accuracies: float) -> list[RunRecord]:
    """Runs that differ only in their seed."""
    config = "seed: {}\ntrain: {{learning_rate: 1}}\n"
    return [
        read_run(make_run(f"seed={n}", accuracy, config_yaml=config.format(n)))
        for n, accuracy in enumerate(accuracies)
    ]


def test_a_row_has_a_cell_for_each_heading(make_run: MakeRun) -> None:
    runs = [read_run(make_run("first", 0.7)), read_run(make_run("second", 0.8))]
    found = compare_runs(runs, ["a", "b"])
    assert found["columns"] == ["run", "accuracy", "loss", "learning_rate"]
    assert [[cell["text"] for cell in row["cells"]] for row in found["rows"]] == [
        ["0.7", "0.5", "0.7"], ["0.8", "0.5", "0.8"],
    ]  # fmt: skip
    assert [row["note"] for row in found["rows"]] == ["", " (best)"]


def test_the_best_is_said_to_be_chosen_on_the_validation_data(make_run: MakeRun) -> None:
    runs = [read_run(make_run("first", 0.7)), read_run(make_run("second", 0.8))]
    best, caution = verdict(runs)
    assert best.startswith("second has the best accuracy: 0.8; next is first with 0.7")
    assert "The best of 2 runs was chosen by its validation figure" in caution
    assert "optimistic: evaluate it on other data" in caution
    assert len(verdict(runs[:1])) == 1


def test_figures_on_test_data_are_named_beside(make_run: MakeRun) -> None:
    measured = {name: {"accuracy": value} for name, value in (("validation", 0.9), ("test", 0.81))}
    tested = make_run("tested", evaluation_json=json.dumps(measured))
    found = verdict([read_run(make_run("first", 0.7)), read_run(tested)])
    assert found[1].endswith("optimistic. On the test data, it has accuracy 0.81.")


def test_seeds_are_summed_up_and_none_is_chosen(make_run: MakeRun) -> None:
    (text,) = verdict(seeded(make_run, 0.7, 0.8, 0.9))
    assert "mean accuracy 0.8, from 0.7 to 0.9 (standard deviation 0.1)" in text


def test_equal_runs_share_the_best_figure(make_run: MakeRun) -> None:
    runs = [read_run(make_run(name, 0.8)) for name in ("one", "two")]
    assert verdict(runs)[0] == "2 runs share the best accuracy: 0.8; one is the first of them."


def test_an_unfinished_run_is_not_the_best_while_others_are_finished(make_run: MakeRun) -> None:
    facts = json.dumps({"command": "finetune", "content": {}})
    unfinished = read_run(make_run("half", 0.99, run_json=facts))
    runs = [read_run(make_run("whole", 0.7)), unfinished]
    assert [run.name for run in ranked_runs(runs)] == ["whole"]
    assert ranked_runs([unfinished]) == [unfinished]
    assert compare_runs(runs, ["a", "b"])["rows"][1]["note"] == " (unfinished)"
    assert "2 different sets of data" in unlike_data(runs)[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_run_with_a_figure_that_is_not_finite_has_no_rank(
    make_run: MakeRun, value: float | None, place: int
) -> None:
    runs = [read_run(make_run(name, score)) for name, score in (("low", 0.7), ("high", 0.8))]
    measured = {"validation": {"accuracy": value, "loss": 0.5}}
    broken = read_run(make_run("broken", evaluation_json=json.dumps(measured)))
    runs.insert(place, broken)
    assert [run.name for run in ranked_runs(runs)] == ["high", "low"]
    assert verdict(runs)[0].startswith("high has the best accuracy: 0.8; next is low")
    cell = compare_runs(runs, ["a", "b", "c"])["rows"][place]["cells"][0]
    assert (cell["text"], cell["value"]) == ("" if value is None else str(value), None)


def test_lower_is_better_for_a_language_model(make_run: MakeRun) -> None:
    def language_model(name: str, bits: float) -> Path:
        figures = {"validation": {"bits_per_byte": bits, "perplexity": 10 * bits}}
        return make_run(name, evaluation_json=json.dumps(figures))

    runs = [read_run(language_model(name, bits)) for name, bits in (("a", 2.5), ("b", 2.0))]
    assert verdict(runs)[0] == "b has the best bits per byte: 2; next is a with 2.5."
