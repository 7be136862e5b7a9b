"""Learning rates and plans as pure functions of the step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmkit.training.schedule import Plan, Revision, rate


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
