"""Divide a model among processes with FSDP2: each holds a part of every weight, its gradient and
its moments, and gathers a layer only while it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel

from llmkit.distributed.processes import Processes
from llmkit.errors import ConfigError
from llmkit.models import logits
from llmkit.training.loss_module import LossModule
from llmkit.training.shards import model_files

TRAINED_BYTES = 16
"""Bytes per trained weight: its value, its gradient and two moments in fp32."""


def is_divided(module: nn.Module) -> bool:
    """Whether each process holds only a part of the module's weights."""
    return isinstance(module, FSDPModule)


def is_chosen(
    asked: bool | str, model: PreTrainedModel, processes: Processes, untested: str | None
) -> bool:
    """Whether to divide a model: as asked, or for `auto` if training needs more memory than a
    device has. One process holds everything.

    Raises ConfigError if it is asked for and impossible; `untested` names a task for which it is.
    """
    if processes.count == 1 or asked is False:
        return False
    if untested is None and not model_files.is_streamable(model):
        untested = f"{type(model).__name__}, whose class saves itself"
    if untested is not None:
        if asked is not True:
            return False
        raise ConfigError(
            f"train.shard is not possible with {untested}",
            where="train.shard",
            next="write train.shard=false, which keeps all weights in each process",
        )
    if asked is True:
        return True
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = model.num_parameters() - trained
    needed = TRAINED_BYTES * trained + 4 * frozen
    return bool(processes.largest([needed > _memory(processes)])[0])


def shard_weights(objective: LossModule, processes: Processes, size: int | None) -> None:
    """Divides the weights of each layer, then those outside of layers, among the processes, and
    moves them to their device.

    All processes must hold the same weights. `size` processes share one copy, and the copies are
    trained alike (HSDP); None: all processes share one. Raises ConfigError if the size does not
    divide the number of processes.
    """
    count = processes.count
    if size is not None and count % size:
        raise ConfigError(
            f"train.shard_size={size} does not divide the {count} processes",
            where="train.shard_size",
            next=f"write one of {', '.join(str(n) for n in range(1, count + 1) if not count % n)}",
        )
    kind = processes.device.type
    if size in (None, count):
        mesh = init_device_mesh(kind, (count,), mesh_dim_names=("shard",))
    else:
        assert size is not None
        mesh = init_device_mesh(kind, (count // size, size), mesh_dim_names=("copy", "shard"))
    for layer in logits.layers_of(objective.model):
        fully_shard(layer, mesh=mesh)
    # The root is the objective: its loss uses weights of the model, such as the output layer. By
    # default a root stays whole after a forward pass: if no backward pass follows, an optimizer
    # made then would get the whole weights, which have no gradients.
    fully_shard(objective, mesh=mesh, reshard_after_forward=True)


@contextmanager
def gathered_ends(objective: nn.Module) -> Iterator[None]:
    """A context in which the weights outside of layers are whole, so that the model can be called
    without its loss; all processes must do so alike. Does nothing for a model that is not divided.
    """
    if not isinstance(objective, FSDPModule):
        yield
        return
    objective.unshard()
    try:
        yield
    finally:
        objective.reshard()


def _memory(processes: Processes) -> float:
    """Bytes of memory that a process has for itself."""
    if processes.device.type == "cuda":
        return float(torch.cuda.get_device_properties(processes.device).total_memory)
    return psutil.virtual_memory().total / processes.count
