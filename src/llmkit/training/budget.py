"""Keeping a run to its minutes: how many steps fit into the time that is left."""

from __future__ import annotations

import time

import psutil

from llmkit.training.schedule import Plan

REVISE_SHARE = 0.02
"""The plan is looked at again whenever this share of the budget has gone by."""


class Clock:
    """Time that a run has used, over all the processes that it took in turn."""

    def __init__(self, used_before: float = 0.0) -> None:
        """This process has used time since it was started, imports and all."""
        running = max(0.0, time.time() - psutil.Process().create_time())
        self._zero = time.monotonic() - running - used_before

    def seconds(self) -> float:
        """Seconds used so far."""
        return time.monotonic() - self._zero


class Budget:
    """Plans the steps of a run that is limited by `seconds`, everything included."""

    def __init__(self, clock: Clock, seconds: float, step: int, reserve: float) -> None:
        """From `step` on; `reserve` is kept for what comes after the last step."""
        self.clock, self.seconds = clock, seconds
        self.reserve = self._fixed_reserve = reserve
        self.begin, self.looked = step, clock.seconds()
        self.first_step, self.first_second = step, self.looked

    def validated(self, seconds: float) -> None:
        """Learns how long a validation takes: the last one comes after the last step."""
        self.reserve = min(self.seconds / 2, self._fixed_reserve + 1.1 * seconds)

    def steps(self, step: int, plan: Plan, most: int | None) -> int:
        """The number of steps to plan for as things stand, or 0 to leave the plan."""
        now = self.clock.seconds()
        if step == self.begin + 1:  # the first step may have compiled, which no other does
            self.first_step, self.first_second = step, now
        done = step - self.first_step
        late = now + self.reserve >= self.seconds
        early_look = done in (5, 20) and step < plan.total_steps
        if not late and not early_look and now - self.looked < REVISE_SHARE * self.seconds:
            return 0
        if done == 0:
            return step if late and step > 0 else 0
        self.looked = now
        pace = (now - self.first_second) / done
        left = int(max(0.0, self.seconds - self.reserve - now) / pace)
        return min(step + left, most) if most else step + left
