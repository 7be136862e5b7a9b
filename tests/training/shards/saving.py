"""Saves by several processes, one of which may fail at any place."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from llmkit.config.schema import Config
from llmkit.distributed.processes import Processes, join_processes
from llmkit.errors import ConfigError, Diverged, WriteError
from llmkit.training import checkpoint, run_directory
from llmkit.training.checkpoint import State
from llmkit.training.schedule import Plan, Revision
from llmkit.training.shards import committing, files, model_files, parts
from llmkit.training.shards.files import StoredTensors, TensorSet
from tests.training.conftest import tiny_model

SMALL = 20_000
"""Bytes of a file: a tiny model has several."""


def state(step: int) -> State:
    return State(step=step, plan=Plan((Revision(0, 100),)), seconds=0.0)


@contextmanager
def pickles() -> Iterator[list[str]]:
    """The calls of pickle meanwhile, by Python and by C."""
    found: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "c_call":
            owner = type(getattr(argument, "__self__", None)).__module__
            if "_pickle" in (owner, getattr(argument, "__module__", None)):
                found.append(f"{argument!r} in {frame.f_code.co_filename}")
        elif event == "call" and frame.f_code.co_filename.endswith("/pickle.py"):
            found.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)


def made(architecture: str, processes: Processes, sharded: bool) -> PreTrainedModel:
    """A tiny model with the same weights in every process, sharded or whole."""
    model = tiny_model(architecture, tie_word_embeddings=architecture == "qwen3")
    if sharded:
        mesh = init_device_mesh("cpu", (processes.count,), mesh_dim_names=("shard",))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def save_all(root: str, architectures: list[str]) -> None:
    """Saves models, whole and sharded, and tensors like moments in many files; reads them back in
    parts, and checks that nothing was pickled."""
    with join_processes("fp32") as processes:
        for architecture in architectures:
            for sharded in (False, True) if processes.count > 1 else (False,):
                model = made(architecture, processes, sharded)
                target = Path(root) / f"{architecture}-{processes.count}-{sharded}"
                moments = {f"{name}.exp_avg": w for name, w in model.state_dict().items()}
                moments |= {"x.step": torch.tensor(3.0), "odd.exp_avg": torch.arange(7.0)}

                def fill(
                    directory: Path, model: PreTrainedModel = model, moments: dict = moments
                ) -> dict:
                    found = TensorSet("optimizer", "the optimizer's", files.groups_of(moments), 1)
                    weights = model_files.model_tensors(model)
                    own = files.write_tensors(directory, weights, processes, SMALL)
                    if processes.is_main:
                        model.config.save_pretrained(directory)
                    return own | files.write_tensors(directory, found, processes, SMALL)

                with pickles() as calls:
                    committing.commit_together(target, fill, {}, processes)
                    stored = StoredTensors(target, "optimizer")
                    read = {name: stored.like(name, tensor) for name, tensor in moments.items()}
                assert calls == []
                for name, tensor in moments.items():
                    assert torch.equal(parts.local(read[name]), parts.local(tensor)), name
                    assert read[name].shape == tensor.shape
        assert pickles_are_seen()


def pickles_are_seen() -> bool:
    """Whether `pickles` notices what torch sends between processes as a pickle."""
    with pickles() as calls:
        torch.distributed.distributed_c10d._object_to_tensor([1], torch.device("cpu"), None)
    return bool(calls)


def hold_unseen(root: str) -> None:
    """Process 0 holds a run directory that the others do not see: each is in its own directory."""
    with join_processes("fp32", 20) as processes:
        own = Path(root) / str(processes.rank)
        own.mkdir()
        os.chdir(own)
        config = Config(output_dir="run")
        with run_directory.hold_run_directory(config, "pretrain") as directory:
            try:
                run_directory.check_seen_by_all(directory, processes)
            except ConfigError as fault:
                print(fault)


def save_together(root: str, step: int, failing: int = -1, stage: str = "") -> None:
    """Saves a checkpoint whose values are its step; the process `failing` is killed, or has a full
    disk or a bad moment, at a stage."""
    with join_processes("fp32", 20) as processes:
        fails = processes.rank == failing
        model = tiny_model(seed=step)
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(step)
        moments = {f"{n}.exp_avg": w.detach() for n, w in model.named_parameters()}
        if fails and stage == "bad":
            moments["model.norm.weight.exp_avg"] = torch.full((32,), torch.inf)
        weights = model_files.model_tensors(model)

        def save_model(directory: Path) -> dict:
            if fails and stage == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, resource.RLIM_INFINITY))
            if fails and stage == "weights":
                os.kill(os.getpid(), signal.SIGKILL)
            found = files.write_tensors(directory, weights, processes, SMALL)
            if fails and stage == "moments":
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        save = partial(checkpoint.save_checkpoint, Path(root), state(step), {}, save_model)
        if fails and stage == "commit":
            rename = Path.rename
            Path.rename = lambda *names: os.kill(os.getpid(), signal.SIGKILL) or rename(*names)
        try:
            save(moments, processes)
        except (WriteError, Diverged) as fault:
            print(type(fault).__name__, fault.what)
