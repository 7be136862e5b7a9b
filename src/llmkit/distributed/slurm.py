"""Processes that srun has started: which of them this one is, by Slurm's variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

_LAST_STEP = 0xFFFFFF00
"""Steps above it are none of srun's: the batch script, and the shell of `salloc`."""

_FIRST_PORT, _PORTS = 10_000, 20_000
"""Ports below those that Linux gives to outgoing connections."""


@dataclass(frozen=True)
class StepTask:
    """A task of a job step that has several."""

    rank: int
    count: int
    local_rank: int
    local_count: int
    address: str
    """The name of the node with rank 0."""
    port: int
    """The same in all tasks of the step, and another for each job and step."""

    def variables(self) -> dict[str, str]:
        """What torchrun would set for this process."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.count),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_count),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def read_step(environment: Mapping[str, str] = os.environ) -> StepTask | None:
    """The task of srun that this process is; None if srun has not started several.

    A batch script and the shell of `salloc` have the variables of their job too, but no step.
    """
    names = ("NTASKS", "PROCID", "LOCALID", "STEP_ID")
    count, rank, local, step = (_number(environment, name) for name in names)
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if count is None or rank is None or local is None or step is None or not nodes:
        return None
    if count < 2 or step > _LAST_STEP:
        return None
    here, job = _number(environment, "NODEID") or 0, _number(environment, "JOB_ID") or 0
    tasks = _tasks_of_nodes(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    local_count = tasks[here] if here < len(tasks) else 1
    port = _FIRST_PORT + (job * 10 + step) % _PORTS
    return StepTask(rank, count, local, local_count, first_node(nodes), port)


def first_node(nodes: str) -> str:
    """The first name of a list of nodes: `gpu[07-09,12],cpu1` begins with gpu07."""
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes).partition(",")[0]


def _tasks_of_nodes(text: str) -> list[int]:
    """The number of tasks on each node: `2(x3),1` is 2, 2, 2, 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(int(times or 1))]


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(f"SLURM_{name}", "")
    return int(text) if text.isdecimal() else None
