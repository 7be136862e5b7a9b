"""The learning rate and the length of a run, as pure functions of the step.

There is no scheduler object, so there is nothing to save, and nothing that can be stepped twice or
be off by one after a resume.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import psutil

from llmkit.config.schema import TrainConfig
from llmkit.distributed.signals import state

DECAY_SHARE = 0.2
"""Share of the run in which warmup-stable-decay decays (Hägele et al., arXiv 2405.18392)."""


@dataclass(frozen=True)
class Revision:
    """From `step` on, the run is planned to have `total_steps` in total."""

    step: int
    total_steps: int


@dataclass(frozen=True)
class Plan:
    """The planned length of a run.

    A run limited by steps has one revision; a run limited by minutes, or lengthened, may have
    several. The same list of revisions gives the same learning rates.
    """

    revisions: tuple[Revision, ...]

    @property
    def total_steps(self) -> int:
        """The currently planned number of steps."""
        return self.revisions[-1].total_steps

    def revised(self, step: int, total_steps: int) -> Plan:
        """The plan with another length from `step` on.

        Progress stays continuous, except for a finished run: its progress becomes that of a run
        planned with the new length.
        """
        return Plan((*self.revisions, Revision(step, max(step, total_steps))))

    def progress(self, step: int) -> float:
        """The share of the run before `step`, from 0 to 1."""
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
    """The factor on the peak learning rate at `step`: linear warm-up over the share `warmup` of the
    run, then `constant`, `linear` or `cosine` decay to 0, or `warmup_stable_decay`."""
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
"""The plan is revised each time this share of the budget has passed."""

FEW_STEPS, STEPS_TO_ADVISE = 50, 100
"""Recommended minimum number of steps; with fewer, a model has hardly begun to learn."""

VALIDATION_SHARE = 0.1
"""Maximum share of a run for all its validations."""

NEAR = 0.01
"""Minimum distance between two validations, as a share of the steps."""


def readable_minutes(minutes: float) -> str:
    """Minutes, formatted for a message."""
    return f"{minutes:g} minute{'s' * (minutes != 1)}"


def minutes_needed(seconds_before: float, per_step: float) -> int:
    """The minutes needed for a sensible number of steps, with start and validation."""
    return math.ceil((seconds_before + 1.25 * STEPS_TO_ADVISE * per_step) / 60)


def too_few(steps: int, minutes: float, needed: int, before: bool) -> str:
    """The warning for a time limit with few steps, `before` or after the run."""
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
    """Measures the time of a run over all its invocations."""

    def __init__(self, used_before: float = 0.0) -> None:
        """Counts from the start of the process, imports included; in a process of another program,
        from the start of its call."""
        running = max(0.0, time.time() - psutil.Process().create_time())
        began = state.hosted_since if state.hosted else time.monotonic() - running
        self._zero = began - used_before

    def seconds(self) -> float:
        """Seconds used so far."""
        return time.monotonic() - self._zero


class Budget:
    """Plans the steps of a run limited by `seconds`, everything included."""

    def __init__(
        self, clock: Clock, seconds: float, step: int, reserve: float, validation: float = 0.0
    ) -> None:
        """Plan from `step` on; `reserve` seconds are kept for the work after the last step, besides
        a `validation` of about that many seconds."""
        self.clock, self.seconds = clock, seconds
        self._fixed_reserve, self.validation, self.validating = reserve, validation, 0.0
        self.begin, self.revised_at = step, clock.seconds()
        self.first_step, self.first_second = step, self.revised_at

    @property
    def reserve(self) -> float:
        """Seconds to keep for the work after the last step."""
        return min(self.seconds / 2, self._fixed_reserve + 1.1 * self.validation)

    def validated(self, seconds: float) -> None:
        """Record the time of a validation; another one follows the last step."""
        self.validation = seconds
        self.validating += seconds

    def allows_validation(self) -> bool:
        """Whether there is time for a validation now and for the last one."""
        return self.validating + 2 * self.validation <= VALIDATION_SHARE * self.seconds

    def steps(self, step: int, plan: Plan, most: int | None) -> int:
        """The number of steps to plan for, or 0 to keep the plan."""
        now = self.clock.seconds()
        if step == self.begin + 1:  # only the first step may include compilation
            self.first_step, self.first_second = step, now
        done = step - self.first_step
        late = now + self.reserve >= self.seconds
        is_early_revision = done in (5, 20) and step < plan.total_steps
        if (
            not late
            and not is_early_revision
            and now - self.revised_at < REVISE_SHARE * self.seconds
        ):
            return 0
        if done == 0:
            return step if late and step > 0 else 0
        self.revised_at = now
        pace = (now - self.first_second) / done
        left = int(max(0.0, self.seconds - self.reserve - now) / pace)
        return min(step + left, most) if most else step + left


def of_run(train: TrainConfig, clock: Clock, step: int, validation_seconds: float) -> Budget | None:
    """The budget from a step on, if the run has a time limit; otherwise None."""
    if train.max_minutes is None or train.plan:
        return None
    seconds = 60 * train.max_minutes
    return Budget(clock, seconds, step, 0.02 * seconds + 2, validation_seconds)


def warning_after(
    train: TrainConfig, step: int, done: int, seconds: float, clock: Clock
) -> str | None:
    """The warning after a run with few steps, of which `done` took the last `seconds`."""
    if train.max_minutes is None or train.plan or not done:
        return None
    if step >= min(FEW_STEPS, train.max_steps or FEW_STEPS):
        return None
    needed = minutes_needed(clock.seconds() - seconds, seconds / done)
    return too_few(step, train.max_minutes, needed, before=False)
