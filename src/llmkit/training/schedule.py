"""The learning rate and the length of a run, as pure functions of the step.

There is no scheduler object, so there is nothing to save, nothing to step twice and nothing to be
off by one after a resume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
