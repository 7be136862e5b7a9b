"""Low-rank updates beside frozen weights (LoRA, Hu et al. 2021, arXiv 2106.09685), through peft.

The updates are layers inside the model itself. What is saved is the merged model, as plain
transformers reads it, and beside it the updates alone, from which training goes on to the bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmkit import extras
from llmkit.config.schema import LoraConfig
from llmkit.errors import ConfigError, LlmkitError

FILE = "lora.safetensors"
"""The trained weights of a checkpoint, as training holds them."""

TOLERANCE = 1e-3
"""Largest difference of logits that merging may cause, by their size; rounding makes 1e-6."""

COMPARED = 128
"""Tokens of each text that the merged model is tried with."""


def attach(
    model: PreTrainedModel, settings: LoraConfig, seed: int, head: Collection[str] = ()
) -> None:
    """Freezes the model but for the weights of its `head`, and puts updates that begin at zero
    beside its linear layers, those of the head and the output embeddings left out.

    Raises ConfigError without peft, and for layers that the model does not have.
    """
    extras.require("peft", "lora", "LoRA", "model.lora")
    import peft

    assert settings.r is not None
    config = peft.LoraConfig(
        r=settings.r,
        lora_alpha=2 * settings.r if settings.alpha == "auto" else settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_targets(model, settings, head),
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells that Conv1D is transposed, and sees to it
        peft.inject_adapter_in_model(config, model)
    for name, weight in model.named_parameters():
        if name in head:
            weight.requires_grad_(True)


def is_attached(model: nn.Module) -> bool:
    """Whether the model has low-rank updates."""
    return any(hasattr(module, "lora_A") for module in model.modules())


@torch.no_grad()
def merged(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the plain model that gives what model and updates give together."""
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    plain = {}
    for name, weight in model.state_dict().items():
        owner, _, leaf = name.partition(".base_layer.")
        if owner in layers:
            update = layers[owner].get_delta_weight("default") if leaf == "weight" else 0
            plain[f"{owner}.{leaf}"] = weight + update
        elif ".lora_" not in name:
            plain[name] = weight
    return plain


def save(model: PreTrainedModel, directory: Path) -> None:
    """Writes the merged model, and the trained weights alone."""
    model.save_pretrained(directory, state_dict=merged(model))
    save_file({k: w.detach().contiguous() for k, w in _trained(model).items()}, directory / FILE)


@torch.no_grad()
def restore(model: PreTrainedModel, directory: Path) -> None:
    """Takes back the trained weights of a checkpoint.

    Raises ConfigError when the weights that stay as they are differ from those the run began with.
    """
    trained, stored = _trained(model), load_file(directory / FILE)
    fits = trained.keys() == stored.keys()
    if fits and all(stored[name].shape == weight.shape for name, weight in trained.items()):
        for name, weight in trained.items():
            weight.copy_(stored[name])
    else:
        fits = False
    before = type(model).from_pretrained(directory, dtype=torch.float32).state_dict()
    now = merged(model)
    if not fits or any(not torch.equal(now[name].cpu(), before[name]) for name in before):
        raise ConfigError(
            "the model below the LoRA updates is not the one that the run began with",
            where=f"model.name_or_path; {directory}",
            kept="the run and all its checkpoints, untouched",
            next="put the old model back, or choose another output_dir for a new run",
        )


@torch.no_grad()
def check_merge(model: PreTrainedModel, plain: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    """Passes when the merged model gives the logits of model and updates; raises LlmkitError."""
    inputs = {
        name: value[:, :COMPARED]  # all logits of long rows would take much memory
        for name, value in batch.items()
        if name not in ("labels", "targets", "places")
    }
    training = model.training
    ours = model.eval()(**{k: v.to(model.device) for k, v in inputs.items()}).logits.cpu()
    model.train(training)
    theirs = plain.eval()(**inputs).logits
    distance = float((ours - theirs).abs().max())
    if distance > TOLERANCE * max(1.0, float(ours.abs().max())):
        raise LlmkitError(
            f"the merged model's logits differ by {distance:.2g} from those of the LoRA updates",
            where="final/",
            kept="all checkpoints, which hold the updates as they were trained",
            next="report it with the architecture of the model",
        )


def _targets(model: PreTrainedModel, settings: LoraConfig, head: Collection[str]) -> list[str]:
    """Names of the linear layers below the head, all of them or those that are asked for."""
    output = model.get_output_embeddings()  # often the input embeddings too
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not output
        and f"{name}.weight" not in head
    ]
    if settings.target_modules == "auto":
        return layers
    for wanted in settings.target_modules:
        if not any(_is(name, wanted) for name in layers):
            kinds = sorted({name.rpartition(".")[2] for name in layers})
            raise ConfigError(
                f"the model has no linear layer called {wanted!r}",
                where="model.lora.target_modules",
                next=f"write some of {', '.join(kinds)}, or `auto` for all",
            )
    return [name for name in layers if any(_is(name, w) for w in settings.target_modules)]


def _is(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _trained(model: nn.Module) -> dict[str, Any]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
