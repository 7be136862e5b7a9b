"""Losses and weights that go astray: told, kept out of the weights, never saved (F54 to F56)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import Diverged, Stopped
from llmkit.training import checkpoint, engine, final_model
from llmkit.training.checkpoint import State
from llmkit.training.schedule import Plan, Revision
from llmkit.training.tasks.causal import CausalLoss
from tests.jobs import spikes
from tests.training.conftest import Trial, tiny_model

STEPS, POISONED = 48, 40
"""Steps of a run, and the number of the one whose rows are nonsense to the model."""


class Poisoned(CausalLoss):
    """Predicts well but for the rows of one step, whose loss is ten times as high."""

    def __init__(self, poisoned: int = POISONED) -> None:
        super().__init__(n_bytes=100)
        self.poisoned, self.steps = poisoned, 0

    def sums(self, model, batch):
        sums = super().sums(model, batch)
        self.steps += model.training
        factor = 10.0 if model.training and self.steps == self.poisoned else 1.0
        return {key: value * factor for key, value in sums.items()}


@pytest.fixture
def spiking(tmp_path: Path) -> Callable[..., Trial]:
    """A run with a spike."""

    def make(name: str, loss_spike: str, **settings) -> Trial:
        settings = {"steps": STEPS, "eval_steps": 1000, "task": Poisoned(), **settings}
        return Trial(tmp_path / name, tiny_model(), loss_spike=loss_spike, **settings)

    return make


def same(a: Trial, b: Trial) -> bool:
    one, other = a.weights(), b.weights()
    return all(torch.equal(one[key], other[key]) for key in one)


def test_a_spike_is_noted_with_its_rows_and_changes_nothing_by_itself(spiking) -> None:
    noted = spiking("noted", "warn")
    noted.run()
    (spike,) = spikes(noted.directory)
    assert spike["step"] == POISONED
    assert spike["rows"] == [(39 * 8 + i) % 40 for i in range(8)]
    assert spike["loss_spike"] > spike["limit"]
    assert "refused" not in spike


def test_a_skipped_spike_moves_no_weight(spiking) -> None:
    skipping = spiking("skipped", "skip", steps=POISONED)
    skipping.run()
    before = spiking("before", "warn", steps=POISONED)
    stop_after(before, POISONED - 1)
    with pytest.raises(Stopped):
        before.run()
    assert same(skipping, before)
    assert spikes(skipping.directory)[0]["refused"] == "spike"


def test_a_run_that_stops_at_a_spike_keeps_the_weights_before_it_and_may_continue(spiking) -> None:
    whole, stopped = spiking("whole", "skip"), spiking("stopped", "stop")
    whole.run()
    with pytest.raises(Diverged, match="spiked") as fault:
        stopped.run()
    assert f"step-{POISONED:010}" in fault.value.kept
    found = checkpoint.newest(stopped.directory / "checkpoints", print)
    model = type(stopped.model).from_pretrained(found.directory, dtype=torch.float32).train()
    task = Poisoned(poisoned=0)
    again = Trial(stopped.directory, model, steps=STEPS, eval_steps=1000, task=task)
    again.loss_spike = "skip"
    again.run(found.state, found.optimizer_tensors())
    assert same(again, whole)


def test_the_window_of_losses_outlasts_an_interruption(spiking) -> None:
    whole, cut = spiking("whole", "skip"), spiking("cut", "skip")
    whole.run()
    stop_after(cut, 35)
    with pytest.raises(Stopped):
        cut.run()
    found = checkpoint.newest(cut.directory / "checkpoints", print)
    assert len(found.state.recent_losses) == 35
    model = type(cut.model).from_pretrained(found.directory, dtype=torch.float32).train()
    again = Trial(cut.directory, model, steps=STEPS, eval_steps=1000, loss_spike="skip")
    again.task = Poisoned(poisoned=POISONED - 35)
    again.run(found.state, found.optimizer_tensors())
    assert same(again, whole)
    a, b = ((run.directory / "metrics.jsonl").read_bytes() for run in (whole, again))
    assert a == b


def stop_after(run: Trial, step: int) -> None:
    """Lets the stop signal come while the step before `step` ends is under way."""
    task = run.task

    def sums(model, batch):
        if model.training and task.steps == step - 1:
            run.stop.handle(15, None)
        return Poisoned.sums(task, model, batch)

    task.sums = sums


@given(st.lists(st.floats(0, 20), min_size=engine.FEWEST, max_size=engine._WINDOW))
def test_the_limit_is_that_of_numpy(losses: list[float]) -> None:
    deviation = max(engine.LEAST_DEVIATION, float(np.std(losses)))
    expected = np.mean(losses) + engine.DEVIATIONS * deviation
    assert engine.spike_limit(losses) == pytest.approx(expected, rel=1e-9)


def test_a_loss_that_has_risen_for_good_is_soon_no_spike() -> None:
    recent: tuple[float, ...] = (2.0,) * engine._WINDOW
    spiked = 0
    while engine.spike_limit(recent) < 5.0:
        spiked += 1
        recent = engine.after(recent, 5.0)
    assert spiked < 10


def test_the_first_steps_are_not_spikes() -> None:
    assert engine.spike_limit([1.0] * (engine.FEWEST - 1)) == math.inf


def test_non_finite_weights_are_never_saved(tmp_path: Path) -> None:
    model, state = tiny_model(), State(step=1, plan=Plan((Revision(0, 2),)), seconds=0.0)

    def save(moment: float) -> Path:
        fill = partial(final_model.save_model, model, NoTokenizer())
        moments = {"w.exp_avg": torch.full((3,), moment)}
        return checkpoint.save_checkpoint(tmp_path / "checkpoints", state, {}, fill, moments)

    with pytest.raises(Diverged, match=r"w\.exp_avg is not finite"):
        save(moment=math.nan)
    with torch.no_grad():
        next(model.parameters())[0, 0] = math.inf
    with pytest.raises(Diverged, match="not finite") as fault:
        save(moment=0.0)
    assert fault.value.exit_code == 79
    assert "checkpoints" in fault.value.kept
    assert list(tmp_path.rglob("*.safetensors")) == []


class NoTokenizer:
    """A tokenizer without files."""

    def save_pretrained(self, directory: Path) -> None: ...
