"""Low-rank updates of frozen weights (LoRA, Hu et al. 2021, arXiv 2106.09685), through peft.

The updates are layers inside the model. A checkpoint holds the merged model, which plain
transformers loads, and the updates separately, from which training resumes bit-identically.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmkit import extras
from llmkit.config.schema import LoraConfig
from llmkit.errors import ConfigError, LlmkitError

LORA_STEM = "lora"
LORA_FILE = f"{LORA_STEM}.safetensors"
"""The file of a checkpoint that holds only the trainable weights."""

_TOLERANCE = 1e-3
"""Largest difference of logits from merging, relative to their size; rounding causes 1e-6."""

COMPARED = 128
"""Tokens of each text on which the merged model is compared."""


def attach(
    model: PreTrainedModel, settings: LoraConfig, seed: int, head: Collection[str] = ()
) -> None:
    """Freezes the model except the weights of its `head`, and adds updates that start at zero to
    its linear layers, except those of the head and the output embeddings.

    Raises ConfigError without peft, and for layers that the model does not have.
    """
    extras.require("peft", "lora", "LoRA", "model.lora")
    import peft

    config = peft.LoraConfig(
        target_modules=_targets(model, settings, head),
        **scaling(settings),
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns that Conv1D is transposed, and handles it
        peft.inject_adapter_in_model(config, model)
    for name, weight in model.named_parameters():
        if name in head:
            weight.requires_grad_(True)


def scaling(settings: LoraConfig) -> dict[str, Any]:
    """The rank, scale and dropout of the updates under peft's names."""
    assert settings.r is not None
    alpha = 2 * settings.r if settings.alpha == "auto" else settings.alpha
    return {"r": settings.r, "lora_alpha": alpha, "lora_dropout": settings.dropout}


def is_attached(model: nn.Module) -> bool:
    """Whether the model has low-rank updates."""
    return any(hasattr(module, "lora_A") for module in model.modules())


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Within this context the model computes without its low-rank updates, if it has any."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_A")]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def merged(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the plain model with the updates merged in. If weights are sharded, all
    processes must call it."""
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    plain = {}
    for name, weight in model.state_dict().items():
        owner, _, leaf = name.partition(".base_layer.")
        if owner in layers:
            update = layers[owner].get_delta_weight("default") if leaf == "weight" else 0
            if isinstance(update, DTensor) and isinstance(weight, DTensor):
                update = update.redistribute(weight.device_mesh, weight.placements)
            plain[f"{owner}.{leaf}"] = weight + update
        elif ".lora_" not in name:
            plain[name] = weight
    return plain


def trained_weights(model: nn.Module) -> dict[str, Any]:
    """The weights that are trained."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


@torch.no_grad()
def restore_lora(model: PreTrainedModel, directory: Path) -> None:
    """Restores the trainable weights of a checkpoint.

    Raises ConfigError if the frozen weights differ from those at the start of the run.
    """
    trained, stored = trained_weights(model), load_file(directory / LORA_FILE)
    fits = trained.keys() == stored.keys()
    if fits and all(stored[name].shape == weight.shape for name, weight in trained.items()):
        for name, weight in trained.items():
            weight.copy_(stored[name])
    else:
        fits = False
    before = type(model).from_pretrained(directory, dtype=torch.float32).state_dict()
    now = merged(model)
    if not fits or any(not _agree(now[name].cpu(), before[name]) for name in before):
        raise ConfigError(
            "the base model of the LoRA updates is not the one that the run started from",
            where=f"model.name_or_path; {directory}",
            kept="the run and all its checkpoints, untouched",
            next="restore the old model, or choose another output_dir for a new run",
        )


@torch.no_grad()
def check_merge(model: PreTrainedModel, plain: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    """Raises LlmkitError unless the merged model gives the logits, of a span its first
    ones, of model and updates."""
    inputs = {
        name: value[:, :COMPARED]  # the logits of long rows would need much memory
        for name, value in batch.items()
        if name not in ("labels", "targets", "places", "words", "reference", "pairs")
        and name not in ("context", "windows")
    }
    training = model.training
    ours = model.eval()(**{k: v.to(model.device) for k, v in inputs.items()})[0].cpu()
    model.train(training)
    theirs = plain.eval()(**inputs)[0]
    distance = float((ours - theirs).abs().max())
    if distance > _TOLERANCE * max(1.0, float(ours.abs().max())):
        raise LlmkitError(
            f"the merged model's logits differ by {distance:.2g} from those of the LoRA updates",
            where="final/",
            kept="all checkpoints, which hold the trained updates",
            next="report it with the architecture of the model",
        )


def _targets(model: PreTrainedModel, settings: LoraConfig, head: Collection[str]) -> list[str]:
    """Names of the linear layers below the head: all, or those that the settings name."""
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
                f"the model has no linear layer named {wanted!r}",
                where="model.lora.target_modules",
                next=f"write some of {', '.join(kinds)}, or `auto` for all",
            )
    return [name for name in layers if any(_is(name, w) for w in settings.target_modules)]


def _is(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether weights are equal up to rounding: several processes merge updates by rows."""
    return torch.allclose(one, other, rtol=1e-5, atol=1e-6)
