"""Whether the loss of a step stands out from those before it: a pure function of their values.

More than six standard deviations above the mean of the last 128 steps, as OLMo 2 has it
(arXiv 2501.00656, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

WINDOW = 128
"""Steps that a loss is compared with."""

FEWEST = 32
"""Steps from which on there is something to compare with."""

DEVIATIONS = 6.0

LEAST_DEVIATION = 0.05
"""Nats; where losses hardly differ, small differences are no spikes."""


def limit(recent: Sequence[float]) -> float:
    """The mean loss of a step above which it is a spike after these."""
    if len(recent) < FEWEST:
        return math.inf
    # Sums that are exact to the last bit are the same on every machine.
    mean = math.fsum(recent) / len(recent)
    variance = math.fsum((loss - mean) ** 2 for loss in recent) / len(recent)
    return mean + DEVIATIONS * max(LEAST_DEVIATION, math.sqrt(variance))


def after(recent: Sequence[float], loss: float) -> tuple[float, ...]:
    """The losses to compare the next step with.

    Spikes count: a loss that has risen for good is soon no spike any more.
    """
    return (*recent, loss)[-WINDOW:]
