"""Lets the sides of a benchmark take turns, so that other load affects all of them alike."""

from __future__ import annotations

import contextlib
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Round = Callable[[int], float]
"""Trains this many steps and returns the seconds they took."""


class Process:
    """A side in a separate process, as its users run it, that waits for its turn."""

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        side = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        assert side.stdin is not None
        assert side.stdout is not None
        self.asking, self.answers = side.stdin, side.stdout
        self.answers.readline()  # it has started, and leaves the machine to others
        self.peak_bytes = 0
        """Peak memory so far, of the accelerator if there is one."""

    def __call__(self, steps: int) -> float:
        print(steps, file=self.asking, flush=True)
        seconds, peak = self.answers.readline().split()
        self.peak_bytes = int(peak)
        return float(seconds)


def serve(run: Round) -> None:
    """The other end of a Process: for each number of steps on stdin, its seconds and peak."""
    out = sys.stdout
    print("ready", file=out, flush=True)
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            print(run(int(line)), _peak(), file=out, flush=True)


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
