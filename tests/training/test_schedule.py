"""Learning rates and plans as pure functions of the step; minutes that no run exceeds."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmkit.training import schedule
from llmkit.training.schedule import Budget, Clock, Plan, Revision, rate


def plan(total: int) -> Plan:
    return Plan((Revision(0, total),))


@pytest.mark.parametrize("total", [10, 100, 1000])
def test_linear_and_cosine_are_torchs_without_warm_up(total: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    shapes = {
        "linear": lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total),
        "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, total),
    }
    for kind, make in shapes.items():
        optimizer = torch.optim.SGD([weight], lr=1.0)
        scheduler = make(optimizer)
        for step in range(total):
            ours = rate(plan(total), step, kind, warmup=0.0)
            assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-5)
            optimizer.step()
            scheduler.step()


@given(
    st.integers(2, 500),
    st.floats(0, 0.9),
    st.sampled_from(["constant", "linear", "cosine", "warmup_stable_decay"]),
)
def test_rates_rise_over_the_warm_up_and_never_leave_zero_to_one(total, warmup, kind) -> None:
    rates = [rate(plan(total), step, kind, warmup) for step in range(total)]
    assert all(0 <= value <= 1 for value in rates)
    assert rates[0] > 0
    rising = max(0, int(warmup * total) - 1)
    assert rates[:rising] == sorted(rates[:rising])
    if kind == "constant":
        assert rates[-1] == pytest.approx(1.0)


def test_warmup_stable_decay_comes_down_in_its_last_fifth() -> None:
    rates = [rate(plan(100), step, "warmup_stable_decay", 0.1) for step in range(100)]
    assert rates[15:80] == [1.0] * 65
    assert rates[85] < 1
    assert rates[-1] < 0.1


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 200)), max_size=5), st.integers(10, 300)
)
def test_progress_is_continuous_over_revisions_and_ends_at_one(changes, total) -> None:
    current = plan(total)
    step = 0
    for after, more in changes:
        step += after
        if step >= current.total_steps:
            break
        before = current.progress(step)
        current = current.revised(step, step + more)
        assert current.progress(step) == pytest.approx(before)
    progress = [current.progress(s) for s in range(current.total_steps + 1)]
    assert progress == sorted(progress)
    assert progress[-1] == pytest.approx(1.0)


class Hand(Clock):
    """A clock whose hand the test moves."""

    now = 0.0

    def seconds(self) -> float:
        return self.now


def spend(seconds: float, planned: int, takes: Callable[[int], float]) -> tuple[float, int, float]:
    """Seconds and steps of a run whose steps take so long, and the last of its learning rates."""
    clock, plan, step, last = Hand(), Plan((Revision(0, planned),)), 0, 1.0
    budget = Budget(clock, seconds, step, reserve=0.02 * seconds)
    while True:
        if proposed := budget.steps(step, plan, None):
            plan = plan.revised(step, proposed)
        if step >= plan.total_steps:
            return clock.now, step, last
        last = rate(plan, step, "linear", 0.0)
        clock.now += takes(step)
        step += 1


@pytest.mark.parametrize("first", [0.1, 5.0, 25.0, 45.0])
@pytest.mark.parametrize("planned", [10, 100, 1000])
def test_a_first_step_that_compiles_tells_nothing_of_the_others(planned, first) -> None:
    used, steps, last = spend(60, planned, lambda step: 0.1 if step else first)
    assert 0.95 * 60 < used <= 60
    assert steps == pytest.approx((58.8 - first) / 0.1, abs=5)
    assert last < 0.05


@pytest.mark.parametrize("seed", range(10))
def test_minutes_hold_on_a_machine_that_slows_down_and_speeds_up(seed) -> None:
    chance = random.Random(seed)
    paces = [chance.choice([0.05, 0.1, 0.2]) for _ in range(100)]
    used, _, last = spend(60, 500, lambda step: paces[step // 50 % 100])
    assert 0.95 * 60 < used <= 60
    assert last < 0.1


def test_validations_take_a_tenth_of_the_minutes_at_most_with_the_last_one() -> None:
    own = Budget(Hand(), 100, 0, reserve=2, validation=2.0)
    taken = 0.0
    while own.allows_validation():
        own.validated(2.0)
        taken += 2.0
    assert taken + 2.0 <= 10
    assert taken == 8.0
    assert not Budget(Hand(), 100, 0, reserve=2, validation=6.0).allows_validation()


def test_minutes_that_hold_few_steps_come_with_the_minutes_that_would_do() -> None:
    needed = schedule.minutes_needed(seconds_before=30, per_step=3.0)
    said = schedule.too_few(17, 1, needed, before=True)
    assert said.startswith("only about 17 steps fit into 1 minute: ")
    assert said.endswith("give train.max_minutes=7 or more")
    assert "only 1 step fitted into 2 minutes" in schedule.too_few(1, 2, 1, before=False)
    assert "train.max_minutes=3 " in schedule.too_few(1, 2, 1, before=False)
