"""Sides of a benchmark that run in processes of their own, as users run them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

Medians = dict[str, dict[str, float]]
"""The figures of each side, the median over the rounds."""


def take_turns(sides: Sequence[str], rounds: int) -> Medians:
    """Runs this script again with `--side NAME`, for each side in turn; the last line that it
    prints is its figures."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            command = [sys.executable, *sys.argv, "--side", side]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        side: {name: statistics.median(each[name] for each in figures) for name in figures[0]}
        for side, figures in found.items()
    }


def ratios_to_others(medians: Medians, side: str = "llmkit") -> Medians:
    """The figures of one side, divided by those of each other side."""
    return {
        f"{side}/{other}": {name: round(medians[side][name] / figures[name], 2) for name in figures}
        for other, figures in medians.items()
        if other != side
    }


def llmkit(*arguments: object) -> dict[str, Any]:
    """The JSON object that a command prints."""
    command = [sys.executable, "-m", "llmkit", *map(str, arguments), "--json", "--quiet"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
