"""Minutes are used up and never passed, whatever the steps take."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from llmkit.training import schedule
from llmkit.training.schedule import Budget, Clock, Plan, Revision, rate


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
