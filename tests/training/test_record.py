"""What a run writes down: the best validation, when to stop, what is due, and saves that fail."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.resolved import ResolvedTrain
from llmkit.distributed.processes import join_processes
from llmkit.errors import WriteError
from llmkit.reporting.console import Console
from llmkit.reporting.progress.training_display import TrainingDisplay
from llmkit.training.checkpoint import State
from llmkit.training.record import Recorder
from llmkit.training.schedule import Clock, Plan, Revision
from tests.jobs import metrics


def recorder(directory: Path, **settings: Any) -> Recorder:
    train = ResolvedTrain(
        global_batch_size=1, micro_batch_size=1, learning_rate=1e-2,
        lr_scheduler_type="linear", warmup_steps=0.0, adam_beta2=0.95,
        weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, save_total_limit=2,
        **{"eval_steps": 1, "save_steps": 1, **settings},
    )  # fmt: skip
    return Recorder(
        directory, train, join_processes("fp32"),
        TrainingDisplay(Console(quiet=True), 0, None), Clock(), save_model, dict, {},
    )  # fmt: skip


def save_model(directory: Path) -> None:
    (directory / "weights").write_text("none")


def state(step: int = 0, total: int = 100) -> State:
    return State(step=step, plan=Plan((Revision(0, total),)), seconds=0.0)


def validate(record: Recorder, figure: str, values: list[float]) -> list[State]:
    """The states after validations at steps 1, 2 and so on, until the run ends."""
    found = [state()]
    for step, value in enumerate(values, 1):
        found.append(record.validated(replace(found[-1], step=step), {figure: value}))
        if found[-1].finished:
            break
    return found[1:]


VALUES = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, math.nan, math.inf]), max_size=12)


@pytest.mark.parametrize(("figure", "best_of"), [("loss", min), ("mae", min), ("accuracy", max)])
@given(values=VALUES)
def test_the_best_is_the_first_of_the_lowest_errors_or_the_highest_scores(
    tmp_path_factory, figure, best_of, values
) -> None:
    record = recorder(tmp_path_factory.mktemp("run"), metric_for_best_model=figure)
    for step, found in enumerate(validate(record, figure, values), 1):
        finite = [value for value in values[:step] if math.isfinite(value)]
        assert found.best_metric == (best_of(finite) if finite else None)
        assert found.best_step == (values.index(best_of(finite)) + 1 if finite else None)


def test_what_a_run_began_with_is_noted_and_never_the_best(tmp_path: Path) -> None:
    found = recorder(tmp_path).validated(state(step=0), {"loss": 0.1})
    assert (found.best_step, found.best_metric) == (None, None)
    assert metrics(tmp_path) == [{"step": 0, "validation_loss": 0.1}]


@pytest.mark.parametrize("patience", [1, 3])
@given(values=VALUES)
def test_a_run_ends_when_as_many_validations_as_its_patience_were_no_better(
    tmp_path_factory, patience, values
) -> None:
    record = recorder(tmp_path_factory.mktemp("run"), early_stopping_patience=patience)
    worse, last = 0, len(values)
    for step, value in enumerate(values, 1):
        before = [earlier for earlier in values[: step - 1] if math.isfinite(earlier)]
        better = math.isfinite(value) and value < min(before, default=math.inf)
        worse = 0 if better else worse + 1
        if worse == patience:
            last = step
            break
    states = validate(record, "loss", values)
    assert len(states) == last
    assert [found.finished for found in states] == [
        step == last and worse == patience for step in range(1, last + 1)
    ]


def test_without_patience_no_run_ends_early(tmp_path: Path) -> None:
    states = validate(recorder(tmp_path), "loss", [0.1, *[0.2] * 20])
    assert len(states) == 21
    assert not states[-1].finished


def test_a_non_finite_figure_is_recorded_as_null(tmp_path: Path) -> None:
    validate(recorder(tmp_path), "loss", [math.inf])
    assert metrics(tmp_path) == [{"step": 1, "validation_loss": None}]


def test_validations_are_due_at_every_multiple_and_at_the_end(tmp_path: Path) -> None:
    record = recorder(tmp_path, eval_steps=3)
    due = [step for step in range(1, 11) if record.validation_is_due(state(step, 10), True)]
    assert due == [3, 6, 9, 10]
    record = recorder(tmp_path, eval_steps=300)
    due = [n for n in range(300, 3002, 300) if record.validation_is_due(state(n, 3001), True)]
    assert due == list(range(300, 3000, 300))  # that of step 3,000 is the one at the end
    assert record.validation_is_due(state(3001, 3001), False)
    assert not record.validation_is_due(replace(state(300), evaluated_step=300), True)


def test_checkpoints_may_fail_twice_in_a_row_but_the_last_one_may_not(tmp_path: Path) -> None:
    record = recorder(tmp_path)
    (tmp_path / "checkpoints").write_text("in the way")
    for step in (1, 2):
        record.save(state(step), must=False)
    assert record.kept() == "nothing was saved yet"
    (tmp_path / "checkpoints").unlink()
    record.save(state(3), must=False)
    assert record.kept().endswith("step-0000000003")
    (tmp_path / "checkpoints").rename(tmp_path / "aside")
    (tmp_path / "checkpoints").write_text("in the way")
    for step in (4, 5):
        record.save(state(step), must=False)
    with pytest.raises(WriteError):
        record.save(state(6), must=False)
    with pytest.raises(WriteError):
        recorder(tmp_path).save(state(7), must=True)
