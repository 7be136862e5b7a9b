"""The learning rate and the length of a run, as pure functions of the step.

There is no scheduler object, so there is nothing to save, nothing to step twice and nothing to be
off by one after a resume.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import psutil

from llmkit.config.schema import TrainConfig

DECAY_SHARE = 0.2
"""Share of the run in which warmup-stable-decay comes down (Hägele et al., arXiv 2405.18392)."""


@dataclass(frozen=True)
class Revision:
    """From `step` on, the run is planned to take `total_steps` in all."""

    step: int
    total_steps: int


@dataclass(frozen=True)
class Plan:
    """How long the run is. One limited by steps has one revision; one that is limited by minutes or
    lengthened may have several, and the same list of revisions gives the same learning rates again.
    """

    revisions: tuple[Revision, ...]

    @property
    def total_steps(self) -> int:
        """Steps of the run as planned now."""
        return self.revisions[-1].total_steps

    def revised(self, step: int, total_steps: int) -> Plan:
        """The plan with another length from `step` on. Progress stays continuous, but for a run
        that was finished: it stands where one of the new length would stand."""
        return Plan((*self.revisions, Revision(step, max(step, total_steps))))

    def progress(self, step: int) -> float:
        """Share of the run that lies before `step`, from 0 to 1."""
        done, before, planned = 0.0, 0, 1
        for revision, following in zip(self.revisions, [*self.revisions[1:], None], strict=True):
            until = step if following is None else min(step, following.step)
            if before >= planned:
                done = min(1.0, before / max(1, revision.total_steps))
            planned = revision.total_steps
            left = revision.total_steps - before
            if until > before:
                done += (1 - done) * min(1.0, (until - before) / max(1, left))
                before = until
        return done


def rate(plan: Plan, step: int, kind: str, warmup: float) -> float:
    """The factor on the highest learning rate at `step`: linear warm-up over the share `warmup` of
    the run, then `constant`, `linear` or `cosine` down to 0, or `warmup_stable_decay`."""
    rise = min(1.0, plan.progress(step + 1) / warmup) if warmup > 0 else 1.0
    past = max(0.0, (plan.progress(step) - warmup) / max(1e-9, 1 - warmup))
    if kind == "constant":
        return rise
    if kind == "cosine":
        return rise * 0.5 * (1 + math.cos(math.pi * past))
    if kind == "warmup_stable_decay":
        return rise * min(1.0, (1 - past) / DECAY_SHARE)
    return rise * (1 - past)


REVISE_SHARE = 0.02
"""The plan is looked at again whenever this share of the budget has gone by."""

FEW_STEPS, STEPS_TO_ADVISE = 50, 100
"""A run of fewer steps has hardly begun to learn, and is advised to have so many."""

VALIDATION_SHARE = 0.1
"""Share of a run that all its validations together may take."""

NEAR = 0.01
"""Share of the steps within which a model is not validated twice."""


def readable_minutes(minutes: float) -> str:
    """Minutes as people read them."""
    return f"{minutes:g} minute{'s' * (minutes != 1)}"


def minutes_needed(seconds_before: float, per_step: float) -> int:
    """The minutes of a run that has a sensible number of steps, start, validation and all."""
    return math.ceil((seconds_before + 1.25 * STEPS_TO_ADVISE * per_step) / 60)


def too_few(steps: int, minutes: float, needed: int, before: bool) -> str:
    """The warning of a run whose minutes hold few steps, `before` it or after it."""
    plural = "s" * (steps != 1)
    if before:
        fit, learns = f"about {steps} step{plural} fit", "will learn"
    else:
        fit, learns = f"{steps} step{plural} fitted", "has learned"
    more = max(needed, math.ceil(minutes) + 1)
    return (
        f"only {fit} into {readable_minutes(minutes)}: the model {learns} very little; "
        f"give train.max_minutes={more} or more"
    )


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

    def __init__(
        self, clock: Clock, seconds: float, step: int, reserve: float, validation: float = 0.0
    ) -> None:
        """From `step` on; `reserve` is kept for what comes after the last step, besides a
        `validation` of about so many seconds."""
        self.clock, self.seconds = clock, seconds
        self._fixed_reserve, self.validation, self.validating = reserve, validation, 0.0
        self.begin, self.looked = step, clock.seconds()
        self.first_step, self.first_second = step, self.looked

    @property
    def reserve(self) -> float:
        """Seconds to keep for what comes after the last step."""
        return min(self.seconds / 2, self._fixed_reserve + 1.1 * self.validation)

    def validated(self, seconds: float) -> None:
        """Learns how long a validation takes: the last one comes after the last step."""
        self.validation = seconds
        self.validating += seconds

    def allows_validation(self) -> bool:
        """Whether there is time for a validation now and for the last one."""
        return self.validating + 2 * self.validation <= VALIDATION_SHARE * self.seconds

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


def of_run(train: TrainConfig, clock: Clock, step: int, validation_seconds: float) -> Budget | None:
    """The budget of a run that is limited by minutes, from a step on; None of another."""
    if train.max_minutes is None or train.plan:
        return None
    seconds = 60 * train.max_minutes
    return Budget(clock, seconds, step, 0.02 * seconds + 2, validation_seconds)


def warning_after(
    train: TrainConfig, step: int, done: int, seconds: float, clock: Clock
) -> str | None:
    """The warning of a run whose minutes held few steps, `done` in the last `seconds`."""
    if train.max_minutes is None or train.plan or not done:
        return None
    if step >= min(FEW_STEPS, train.max_steps or FEW_STEPS):
        return None
    needed = minutes_needed(clock.seconds() - seconds, seconds / done)
    return too_few(step, train.max_minutes, needed, before=False)
