"""The sides of a benchmark take turns in one process, so that a busy machine is busy for all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

Round = Callable[[int], float]
"""Trains so many steps and returns the seconds that they took."""


def take(
    sides: Mapping[str, Round], rounds: int, steps: int, tokens_per_step: int
) -> dict[str, Any]:
    """Tokens/s of each side, the median over the rounds; how many times as fast the first side is
    as each other; and the seconds of every round. Two steps before the first round do not count."""
    for run in sides.values():
        run(2)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            seconds[name].append(run(steps))
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(sides))
    return {
        "tokens_per_second": {
            name: round(steps * tokens_per_step / each, 1) for name, each in middle.items()
        },
        "ratios": {
            f"{first}/{name}": round(each / middle[first], 3)
            for name, each in middle.items()
            if name != first
        },
        "seconds": seconds,
    }
