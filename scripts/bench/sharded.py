"""Time of a step with weights divided among processes on CPUs, beside DDP; and of Muon's update
with owners, beside gathering by DTensor.

Both sides take turns in the same processes. A step is two micro-batches forward and backward, with
synchronized gradients, clipping and AdamW.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llmkit.config.schema import TrainConfig
from llmkit.distributed.processes import Processes, join_processes
from llmkit.models import build
from llmkit.training import muon
from llmkit.training.loss_module import LossModule
from llmkit.training.optimizer import NamedOptimizer
from llmkit.training.shards import wrapping
from llmkit.training.tasks import defaults
from llmkit.training.tasks.causal import CausalLoss

SHAPE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
VOCABULARY, BLOCK, ROWS, MICRO = 2048, 128, 4, 2


class GatheringMuon(muon.Muon):
    """Muon that lets DTensor gather, so that each process orthogonalises every matrix."""

    def _move(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [matrix.grad for matrix in matrices]
        for matrix in matrices:
            self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch.stack(torch._foreach_lerp(gradients, buffers, group["momentum"]))
        assert isinstance(updates, DTensor)
        directions = muon.orthogonal(updates).to(matrices[0].dtype)
        size = 0.2 * max(matrices[0].shape) ** 0.5 * group["lr"]
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, list(directions.unbind()), alpha=-size)


def model() -> nn.Module:
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return build.causal_model(build.model_config("qwen3", SHAPE, VOCABULARY, BLOCK, special), 0)


def objective(processes: Processes, divided: bool) -> LossModule:
    made = LossModule(CausalLoss(1, linear_head=True), model())
    if divided:
        wrapping.shard_weights(made, processes, None)
    return made


def steps(processes: Processes, divided: bool) -> Callable[[], None]:
    """One step of training, by FSDP2 or DDP."""
    made = objective(processes, divided)
    settings = defaults.pretraining(TrainConfig(weight_decay=0.1))
    optimizer = NamedOptimizer(made.model, "adamw", settings)
    called = made if divided else processes.distribute(made)
    ids = torch.randint(0, VOCABULARY, (ROWS, BLOCK), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        for index in range(MICRO):
            with processes.sync_only_if(index == MICRO - 1, called):
                sums = called({"input_ids": ids, "targets": ids})
                (sums["objective"] / (ROWS * BLOCK * MICRO)).backward()
        nn.utils.clip_grad_norm_(optimizer.parameters, 1.0, foreach=True)
        optimizer.step(1e-3)
        optimizer.zero_grad()

    return step


def updates(processes: Processes, kind: type[muon.Muon]) -> Callable[[], None]:
    """One update of all hidden matrices."""
    made = objective(processes, True)
    names = muon.hidden(made.model)
    weights = [weight for name, weight in made.model.named_parameters() if name in names]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    return kind(weights).step


def measure(rank: int, arguments: argparse.Namespace) -> None:
    with join_processes("fp32") as processes:
        sides = {
            "fsdp": steps(processes, True),
            "ddp": steps(processes, False),
            "muon_owners": updates(processes, muon.Muon),
            "muon_gathering": updates(processes, GatheringMuon),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(arguments.rounds + 1):
            for name, side in sides.items():
                processes.wait()
                start = time.perf_counter()
                side()
                processes.wait()
                if turn:  # the first one is slower
                    times[name].append(time.perf_counter() - start)
        found = {name: statistics.median(each) for name, each in times.items()}
        if rank == 0:
            ratios = {
                "fsdp/ddp": found["fsdp"] / found["ddp"],
                "owners/gathering": found["muon_owners"] / found["muon_gathering"],
            }
            shown = {"seconds": found, "ratios": ratios}
            print(json.dumps(shown, default=float, indent=1), flush=True)


def start_processes(
    work: Callable[[int, argparse.Namespace], None], arguments: argparse.Namespace
) -> None:
    """Runs the work in `arguments.processes` processes, and exits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(arguments.processes):
        if (child := os.fork()) == 0:
            count, place = str(arguments.processes), str(rank)
            os.environ.update(RANK=place, LOCAL_RANK=place, WORLD_SIZE=count)
            os.environ.update(LOCAL_WORLD_SIZE=count, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            code = 1
            try:
                work(rank, arguments)
                code = 0
            finally:
                os._exit(code)
        started.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started]
    raise SystemExit(max(map(abs, codes)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    start_processes(measure, parser.parse_args())


if __name__ == "__main__":
    main()
