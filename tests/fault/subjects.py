"""What a trial does when it is no command line: one part of a run, as the run does it."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from llmkit.errors import WriteError
from llmkit.training import checkpoint
from llmkit.training.checkpoint import Checkpoint, State
from llmkit.training.schedule import Plan, Revision
from llmkit.training.signals import stop_signal


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
            checkpoint.save(
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


def press(number: int) -> None:
    """Sends the run the same signal twice; goes on until it is stopped."""
    with stop_signal() as stop:
        for _ in range(2):
            os.kill(os.getpid(), number)
        while True:
            stop.check()


def tiny_model() -> PreTrainedModel:
    """A model of a few hundred weights."""
    return GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8, n_positions=8))


def state(step: int) -> State:
    """The state of a run that has done so many steps."""
    return State(step=step, plan=Plan((Revision(0, 100),)), seconds=0.0)


def is_right(found: Checkpoint) -> bool:
    """Whether a checkpoint of `save` holds its step and nothing else."""
    weights = load_file(found.directory / "model.safetensors")
    tensors = [*weights.values(), *found.optimizer_tensors().values()]
    return all(bool((tensor == found.state.step).all()) for tensor in tensors)
