"""Slurm's variables become those of torchrun, in a job step with several tasks only."""

from __future__ import annotations

import pytest

from llmkit.distributed.slurm import first_node, read_step

STEP = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "5", "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_JOB_NODELIST": "gpu[01-09]", "SLURM_STEP_NODELIST": "gpu[07-09]",
}  # fmt: skip


def test_a_task_of_srun_knows_its_rank_and_where_rank_0_is() -> None:
    """Which is on the first node of the step, not of the job."""
    task = read_step(STEP)
    assert task is not None
    port = task.variables().pop("MASTER_PORT")
    assert task.variables() == {
        "RANK": "3", "WORLD_SIZE": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu07", "MASTER_PORT": port,
    }  # fmt: skip
    others = [
        read_step({**STEP, **own}) for own in ({"SLURM_JOB_ID": "4712"}, {"SLURM_STEP_ID": "1"})
    ]
    ports = {port, *(str(other.port) for other in others if other is not None)}
    assert len(ports) == 3
    assert all(1024 < int(each) < 32768 for each in ports)
    same = read_step({**STEP, "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"})
    assert same is not None
    assert (str(same.port), same.local_count) == (port, 1)


@pytest.mark.parametrize(
    "own",
    [
        {"SLURM_NTASKS": "1"},
        {"SLURM_STEP_ID": ""},  # in a batch script
        {"SLURM_STEP_ID": str(0xFFFFFFFA)},  # the shell of salloc
        {"SLURM_PROCID": ""},
    ],
)
def test_outside_a_step_of_several_tasks_nothing_is_taken(own: dict[str, str]) -> None:
    assert read_step({**STEP, **own}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("gpu[3,5-8]", "gpu3"),
        ("rack[2-3]node[04-05]-ib", "rack2node04-ib"),
        ("a-b-c,d[1-2]", "a-b-c"),
    ],
)
def test_the_first_node_of_a_list_is_found(nodes: str, first: str) -> None:
    assert first_node(nodes) == first
