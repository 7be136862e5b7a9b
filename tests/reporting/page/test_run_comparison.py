"""Which run is best, and what that is worth."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from llmkit.reporting.held_out import OF_LABELS, HeldOut, write_held_out
from llmkit.reporting.page.run_comparison import RunComparison
from llmkit.reporting.run_record import RunRecord, named_apart, read_run
from tests.conftest import MakeRun


def seeded(make_run: MakeRun, *accuracies: float) -> list[RunRecord]:
    """Runs that differ only in their seed."""
    config = "seed: {}\ntrain: {{learning_rate: 1}}\n"
    return [
        read_run(make_run(f"seed={n}", accuracy, config_yaml=config.format(n)))
        for n, accuracy in enumerate(accuracies)
    ]


def with_rows(directory: Path, right: int, *, of: int = 100, content: str = "rows") -> RunRecord:
    """A run that kept its held-out rows, of which the first are predicted right."""
    label = np.arange(of) % 2
    predicted = np.where(np.arange(of) < right, label, 1 - label)
    columns = {"unit": np.arange(of), "label": label, "predicted": predicted, "loss": 1.0 - label}
    write_held_out(directory, HeldOut(OF_LABELS, content, columns, ("a", "b")))
    return read_run(directory)


def test_runs_on_the_same_rows_are_compared_in_pairs(make_run: MakeRun) -> None:
    runs = [
        with_rows(make_run("first", 0.70), 70),
        with_rows(make_run("second", 0.78), 78),
        with_rows(make_run("third", 0.79), 79),
    ]
    compared = RunComparison(runs)
    assert compared.sentences[0].startswith("third has the best accuracy: 0.79; next is second")
    assert "The difference may be chance: \N{MINUS SIGN}0.01 (95% interval" in compared.sentences[0]
    assert "in pairs over 100 rows)" in compared.sentences[0]
    assert compared.differences["first"]["accuracy"].is_clear
    assert compared.differences["first"]["accuracy"].value == pytest.approx(-0.09)
    assert "third" not in compared.differences
    assert compared.warnings == []
    best, other = RunComparison(runs[::2]).sentences[0].split("difference is clear")
    assert "third" in best
    assert other.startswith(": \N{MINUS SIGN}0.09 (95% interval \N{MINUS SIGN}")


def test_why_runs_are_not_compared_in_pairs_is_said(make_run: MakeRun) -> None:
    one = with_rows(make_run("one", 0.7), 70)
    other = with_rows(make_run("other", 0.8), 80, content="other rows")
    plain = read_run(make_run("plain", 0.75))
    compared = RunComparison([one, other, plain])
    assert compared.differences == {}
    assert "Their intervals overlap" in compared.sentences[0]
    (warning,) = compared.warnings
    assert "the held-out data of one and other differ" in warning
    assert "plain was made by an earlier version" in warning


def test_keys_that_nobody_gave_are_apart(make_run: MakeRun) -> None:
    runs = [read_run(make_run("first", 0.7)), read_run(make_run("second", 0.8))]
    assert RunComparison(runs).keys == ["train.learning_rate"]
    assert RunComparison(runs).given_keys == ["train.learning_rate"]
    facts = json.dumps({"command": "finetune", "origins": {"train.learning_rate": "auto"}})
    runs = [read_run(make_run(name, value, run_json=facts)) for name, value in (("a", 1), ("b", 2))]
    assert RunComparison(runs).given_keys == []


def test_the_best_is_said_to_be_chosen_on_the_validation_data(make_run: MakeRun) -> None:
    runs = [read_run(make_run("first", 0.7)), read_run(make_run("second", 0.8))]
    best, caution = RunComparison(runs).sentences
    assert best.startswith("second has the best accuracy: 0.8; next is first with 0.7")
    assert "The best of 2 runs was chosen by its validation figure" in caution
    assert "optimistic: evaluate it on other data" in caution
    assert len(RunComparison(runs[:1]).sentences) == 1


def test_figures_on_test_data_are_named_beside(make_run: MakeRun) -> None:
    measured = {name: {"accuracy": value} for name, value in (("validation", 0.9), ("test", 0.81))}
    tested = make_run("tested", evaluation_json=json.dumps(measured))
    found = RunComparison([read_run(make_run("first", 0.7)), read_run(tested)]).sentences
    assert found[1].endswith("optimistic. On the test data, it has accuracy 0.81.")


def test_seeds_are_summed_up_and_none_is_chosen(make_run: MakeRun) -> None:
    (text,) = RunComparison(seeded(make_run, 0.7, 0.8, 0.9)).sentences
    assert "mean accuracy 0.8, from 0.7 to 0.9 (standard deviation 0.1)" in text


def test_equal_runs_share_the_best_figure(make_run: MakeRun) -> None:
    runs = [read_run(make_run(name, 0.8)) for name in ("one", "two")]
    assert (
        RunComparison(runs).sentences[0]
        == "2 runs share the best accuracy: 0.8; one is the first of them."
    )


def test_an_unfinished_run_is_not_the_best_while_others_are_finished(make_run: MakeRun) -> None:
    facts = json.dumps({"command": "finetune", "content": {}})
    unfinished = read_run(make_run("half", 0.99, run_json=facts))
    runs = [read_run(make_run("whole", 0.7)), unfinished]
    assert [run.name for run in RunComparison(runs).ranked] == ["whole"]
    assert RunComparison([unfinished]).ranked == [unfinished]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_run_with_a_figure_that_is_not_finite_has_no_rank(
    make_run: MakeRun, value: float | None, place: int
) -> None:
    runs = [read_run(make_run(name, score)) for name, score in (("low", 0.7), ("high", 0.8))]
    measured = {"validation": {"accuracy": value, "loss": 0.5}}
    broken = read_run(make_run("broken", evaluation_json=json.dumps(measured)))
    runs.insert(place, broken)
    assert [run.name for run in RunComparison(runs).ranked] == ["high", "low"]
    assert (
        RunComparison(runs).sentences[0].startswith("high has the best accuracy: 0.8; next is low")
    )


def test_lower_is_better_for_a_language_model(make_run: MakeRun) -> None:
    def language_model(name: str, bits: float) -> Path:
        figures = {"validation": {"bits_per_byte": bits, "perplexity": 10 * bits}}
        return make_run(name, evaluation_json=json.dumps(figures))

    runs = [read_run(language_model(name, bits)) for name, bits in (("a", 2.5), ("b", 2.0))]
    assert (
        RunComparison(runs).sentences[0] == "b has the best bits per byte: 2; next is a with 2.5."
    )


def test_runs_of_the_same_name_are_distinguished_by_the_directories_above(
    make_run: MakeRun,
) -> None:
    moved = []
    for place in ("a", "b"):
        directory = make_run(f"{place}-x")
        (directory.parent / place).mkdir()
        moved.append(directory.rename(directory.parent / place / "x"))
    runs = named_apart([read_run(path) for path in (*moved, moved[0], make_run("y"))])
    assert [run.name for run in runs] == ["a/x", "b/x", "y"]
