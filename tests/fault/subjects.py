"""What a trial does when it is not a command line: one part of a run, as the run does it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import llmkit
from llmkit.api.host import hosted_call
from llmkit.distributed import failures
from llmkit.distributed.processes import join_processes
from llmkit.distributed.signals import stop_signal
from llmkit.errors import DataError, WriteError
from llmkit.training import checkpoint
from llmkit.training.checkpoint import Checkpoint, State
from llmkit.training.schedule import Plan, Revision
from llmkit.training.tasks.task import Batch
from tests.distributed.slices import hold_slices
from tests.training import conftest as training
from tests.training import with_dropout
from tests.training.conftest import Rows, Trial
from tests.training.shards.dividing import train_divided
from tests.training.shards.saving import hold_unseen, save_all, save_together

__all__ = ["hold_slices", "hold_unseen", "save_all", "save_together", "train_divided"]


def save(root: str, acknowledged: str, steps: list[int]) -> None:
    """Saves a checkpoint of each step and keeps two, as a run does.

    All values of a checkpoint are its step. The length of the file `acknowledged` is the last step
    whose checkpoint was committed. A save that fails is let by, except the last.
    """
    model = tiny_model()
    for step in steps:
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(step)
        try:
            checkpoint.save_checkpoint(
                Path(root),
                state(step),
                {},
                model.save_pretrained,
                {"w.exp_avg": torch.ones(8) * step},
            )
        except WriteError:
            if step == steps[-1]:
                raise
            continue
        os.truncate(acknowledged, step)
        checkpoint.prune(Path(root), 2, None, print)


def start_a_program() -> None:
    """Does what no run does."""
    os.system("true")


def press(number: int, hosted: bool = False) -> None:
    """Sends the run, or a call in the process of another program, the same signal twice; goes on
    until it is stopped."""
    with hosted_call() if hosted else nullcontext(), stop_signal() as stop:
        for _ in range(2):
            os.kill(os.getpid(), number)
        while True:
            stop.check()


def call(function: str, **keywords: object) -> None:
    """Calls a function of llmkit as a notebook does, and prints how that ended."""
    try:
        getattr(llmkit, function)(**keywords)
        print("returned")
    except KeyboardInterrupt as stop:
        print(f"interrupted: {stop}")


def tiny_model() -> PreTrainedModel:
    """A model of a few hundred weights."""
    return GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8, n_positions=8))


def state(step: int) -> State:
    """The state of a run that has done so many steps."""
    return State(step=step, plan=Plan((Revision(0, 100),)), seconds=0.0)


def is_right(found: Checkpoint) -> bool:
    """Whether a checkpoint of `save` holds its step and nothing else."""
    weights = load_file(found.directory / "model.safetensors")
    moments = found.optimizer_tensors()
    tensors = [*weights.values(), *(moments[name] for name in moments)]
    return all(bool((tensor == found.state.step).all()) for tensor in tensors)


class Faulty(Rows):
    """Examples of which one cannot be read, or all of which need more memory than there is."""

    def __init__(self, bad_row: int | None, huge: bool) -> None:
        super().__init__(40)
        self.bad_row, self.huge = bad_row, huge

    def batch(self, rows: Sequence[int]) -> Batch:
        if self.bad_row in rows:
            raise DataError(f"row {self.bad_row} is bad", where=f"row {self.bad_row}")
        if self.huge:
            torch.empty(1 << 50)
        return super().batch(rows)


def train(bad_row: int | None = None, huge: bool = False, validation: int = 0) -> None:
    """Trains a tiny model, as far as that goes, and prints its loss on so many examples."""
    with tempfile.TemporaryDirectory() as directory:
        trial = Trial(
            Path(directory),
            training.tiny_model(),
            steps=2,
            examples=Faulty(bad_row, huge),
            validation=Rows(validation, seed=9) if validation else None,
        )
        processes = join_processes("fp32")
        with processes, failures.named_by_rank(processes, trial.micro_batch):
            print(trial.run().best_metric)


def train_with_dropout(objective: str) -> None:
    """Trains a tiny model with dropout, three sequences at a time, and prints its losses."""
    with tempfile.TemporaryDirectory() as directory:
        parts = with_dropout.parts(objective)
        trial = Trial(Path(directory), steps=10, micro_batch=3, logging=1, **parts)
        with join_processes("fp32") as processes:
            trial.run()
            if processes.is_main:
                print((trial.directory / "metrics.jsonl").read_text())
