"""Runs of the whole engine in which each process holds a part of the weights."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from llmkit.distributed.processes import Processes, join_processes
from llmkit.errors import Stopped
from llmkit.training import checkpoint
from llmkit.training.shards.parts import local, own_rows
from tests.training.conftest import Trial, tiny_model

STEPS, PAUSE = 10, 3


def train_divided(root: str, names: list[str], sizes: list[int | None], stop: bool = False) -> None:
    """Trains a tiny model for each name, such as `qwen3-muon`, and each number of processes that
    share a copy; goes on from a checkpoint if there is one, and may stop after the next
    validation."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        setattr(torch.cpu, name, lambda: False)  # Muon in fp32
    with join_processes("fp32", 60) as processes:
        for name in names:
            for size in sizes:
                train(Path(root) / f"{name}-{size}", name, processes, size, stop)


def train(directory: Path, name: str, processes: Processes, size: int | None, stop: bool) -> None:
    architecture, optimizer = name.split("-")
    begun = tiny_model(architecture)
    processes.wait()
    found = checkpoint.newest(directory / "checkpoints", print)
    trial = Trial(
        directory, begun, steps=STEPS, optimizer=optimizer, micro_batch=1, logging=1,
        eval_steps=PAUSE, shard=processes.count > 1, shard_size=size,
    )  # fmt: skip
    if stop:
        trial.look = lambda: trial.stop.handle(15, None) or {}
    with suppress(Stopped):
        if found is None:
            trial.run()
        else:
            trial.model = type(begun).from_pretrained(found.directory, dtype=torch.float32)
            trial.run(found.state, found.optimizer_tensors())
    check_parts(trial, size or processes.count)


def check_parts(trial: Trial, count: int) -> None:
    """Each process holds its rows of every weight and of its moments, and no more."""
    held = {**dict(trial.model.named_parameters()), **trial.named.state()}
    for name, tensor in held.items():
        if tensor.ndim:
            most = own_rows(len(tensor), 0, count).stop
            assert len(local(tensor)) <= most, name
    total, own = (
        sum(each(tensor).nbytes for tensor in held.values() if tensor.ndim)
        for each in (lambda tensor: tensor, local)
    )
    assert own <= 1.05 * total / count
