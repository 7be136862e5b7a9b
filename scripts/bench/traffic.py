"""Bytes that each process holds and receives in a training step, counted on CPU processes beside
the formulas of decision 63; and what the formulas give for large models (`--expect`).

Each call of a collective is counted with what a ring needs: of a gather or a scatter of B bytes
among N processes each receives B (N - 1) / N, of a sum twice that.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from sharded import BLOCK, MICRO, ROWS, VOCABULARY, model, start_processes
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmkit.config.schema import TrainConfig
from llmkit.distributed.processes import Processes, join_processes
from llmkit.models.logits import layers_of
from llmkit.training import muon
from llmkit.training.loss_module import LossModule
from llmkit.training.optimizer import NamedOptimizer
from llmkit.training.shards import wrapping
from llmkit.training.shards.parts import local
from llmkit.training.tasks import defaults
from llmkit.training.tasks.causal import CausalLoss

GB = 1e9
SIZES = {"1B": (1e9, 0.15e9, 16), "7B": (7e9, 0.3e9, 32), "70B": (70e9, 1.1e9, 80)}
"""Weights, those of the embeddings among them, and layers."""
GPUS = (8, 16, 32, 64)
NODE = 8


@dataclass(frozen=True)
class Shape:
    """Numbers of weights."""

    weights: float
    matrices: float
    """Those that Muon trains."""
    layer: float
    """The largest layer."""
    ends: float
    """Outside of layers."""


@dataclass(frozen=True)
class Division:
    """How the weights are divided."""

    count: int
    share: int
    """Processes that share one copy."""
    is_divided: bool
    optimizer: str

    def state_bytes(self, shape: Shape) -> float:
        """Weights, gradients and moments that a process holds."""
        moments = 16 * shape.weights - (4 * shape.matrices if self.optimizer == "muon" else 0)
        return moments / (self.share if self.is_divided else 1)

    def gathered_bytes(self, shape: Shape) -> float:
        """Whole weights at a time: two layers, since one is fetched ahead, and the ends."""
        return 4 * (2 * shape.layer + shape.ends) if self.is_divided else 0

    def received_bytes(self, shape: Shape, micro_batches: int) -> float:
        """What a process receives in a step."""
        whole = 4 * shape.weights
        if not self.is_divided:
            return 2 * whole * (1 - 1 / self.count)
        found = 3 * whole * (1 - 1 / self.share)
        found += 2 * whole / self.share * (1 - self.share / self.count)
        exchanged = 8 * shape.matrices * (self.share - 1) / self.share**2
        return micro_batches * found + (exchanged if self.optimizer == "muon" else 0)


class Collectives(TorchDispatchMode):
    """Counts the bytes that this process receives in collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.received: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            self.received[func.__name__.partition(".")[0]] += _received(args)
        return func(*args, **(kwargs or {}))


def _received(args: tuple[Any, ...]) -> int:
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    if not tensors:  # a barrier
        return 0
    boxed = next(each for each in args if isinstance(each, torch.ScriptObject))
    group = ProcessGroup.unbox(boxed)
    splits = [each for each in args if isinstance(each, list) and each and type(each[0]) is int]
    if len(splits) == 2:  # of an exchange
        others = sum(splits[0]) - splits[0][group.rank()]
        return others * tensors[0][:1].nbytes if tensors[0].numel() else 0
    sizes = [tensor.nbytes for tensor in tensors]
    if len(sizes) > 1:  # a gather or a scatter
        return max(sizes) - min(sizes)
    return round(2 * sizes[0] * (group.size() - 1) / group.size())


def shape_of(made: LossModule) -> Shape:
    def count(several: Iterable[Tensor]) -> int:
        return sum(weight.numel() for weight in several)

    layers = [count(layer.parameters()) for layer in layers_of(made.model)]
    hidden, named = muon.hidden(made.model), dict(made.model.named_parameters())
    whole = count(made.model.parameters())
    return Shape(whole, count(named[name] for name in hidden), max(layers), whole - sum(layers))


def counted(processes: Processes, division: Division) -> tuple[Shape, float, float]:
    """The shape of the model, and the bytes that this process holds and receives in one step."""
    made = LossModule(CausalLoss(1, linear_head=True), model())
    shape = shape_of(made)
    if division.is_divided:
        wrapping.shard_weights(made, processes, division.share)
    called = made if division.is_divided else processes.distribute(made)
    settings = defaults.pretraining(TrainConfig(weight_decay=0.1))
    optimizer = NamedOptimizer(made.model, division.optimizer, settings)
    ids = torch.randint(0, VOCABULARY, (ROWS, BLOCK), generator=torch.Generator().manual_seed(0))

    def step() -> int:
        for index in range(MICRO):
            with processes.sync_only_if(index == MICRO - 1, called):
                called({"input_ids": ids, "targets": ids})["objective"].backward()
        nn.utils.clip_grad_norm_(optimizer.parameters, 1.0, foreach=True)
        gradients = sum(local(weight.grad).nbytes for weight in optimizer.parameters)
        optimizer.step(1e-3)
        optimizer.zero_grad()
        return gradients

    step()
    with Collectives() as found:
        gradients = step()
    held = [*made.model.parameters(), *optimizer.state().values()]
    own = gradients + sum(local(tensor).nbytes for tensor in held if tensor.ndim)
    return shape, own, sum(found.received.values())


def measure(rank: int, arguments: argparse.Namespace) -> None:
    with join_processes("fp32") as processes:
        count = processes.count
        sides = {
            "ddp, adamw": Division(count, count, False, "adamw"),
            "fsdp, adamw": Division(count, count, True, "adamw"),
            "fsdp, muon": Division(count, count, True, "muon"),
        }
        if count > 2 and count % 2 == 0:
            sides["hsdp of 2, adamw"] = Division(count, 2, True, "adamw")
            sides["hsdp of 2, muon"] = Division(count, 2, True, "muon")
        rows = {}
        for name, division in sides.items():
            shape, held, received = counted(processes, division)
            expected = division.state_bytes(shape), division.received_bytes(shape, MICRO)
            largest = processes.largest([held, received])
            rows[name] = {
                "held_mb": round(largest[0] / 1e6, 3),
                "held/formula": round(largest[0] / expected[0], 4),
                "received_mb": round(largest[1] / 1e6, 3),
                "received/formula": round(largest[1] / expected[1], 4),
            }
        if rank == 0:
            print(json.dumps({"processes": count, **rows}, indent=1), flush=True)


def expected() -> str:
    """A table for large models: GB held without activations, and received in a step of one
    micro-batch."""
    lines = [
        "| weights | GPUs | DDP | FSDP2 | HSDP, one node a copy | FSDP2, Muon |",
        "|---" * 6 + "|",
    ]
    for name, (weights, ends, layers) in SIZES.items():
        shape = Shape(weights, weights - ends, (weights - ends) / layers, ends)
        for count in GPUS:
            several = (
                Division(count, count, False, "adamw"), Division(count, count, True, "adamw"),
                Division(count, NODE, True, "adamw"), Division(count, count, True, "muon"),
            )  # fmt: skip
            cells = (
                f"{(each.state_bytes(shape) + each.gathered_bytes(shape)) / GB:.1f}, "
                f"{each.received_bytes(shape, 1) / GB:.1f}"
                for each in several
            )
            lines.append(f"| {name} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--expect", action="store_true", help="print the table, run nothing")
    arguments = parser.parse_args()
    if arguments.expect:
        print(expected())
        return
    start_processes(measure, arguments)


if __name__ == "__main__":
    main()
