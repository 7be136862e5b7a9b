"""The model that writes: its config and tokenizer first, so that faults cost no weights."""

from __future__ import annotations

import torch

from llmkit.config.schema import Config, GenerationConfig
from llmkit.errors import ConfigError, UsageError
from llmkit.inference import constraints
from llmkit.inference.batching import Engine
from llmkit.inference.constraints import Constrain
from llmkit.inference.sampler import end_ids
from llmkit.models import build, load, pretrained
from llmkit.models.kernels import int8
from llmkit.models.pretrained import Pretrained


def opened(config: Config) -> Pretrained:
    """The named model, without its weights, which can write; raises what `checked` does."""
    return checked(pretrained.of_config(config))


def checked(model: Pretrained | None) -> Pretrained:
    """A model that can write.

    Raises UsageError where no model is named, and DataError for one that is no causal language
    model.
    """
    if model is None:
        raise UsageError("there is no model", next="name one with --model")
    model.check_causal()
    return model


def constraint(config: Config, model: Pretrained) -> Constrain | None:
    """The form that the texts must have, checked as far as it can be without the model."""
    ends = end_ids(getattr(model.config, "eos_token_id", None), model.tokenizer.eos_token_id)
    return constraints.constrain(config.generation, model.tokenizer, ends)


def usual_device() -> torch.device:
    """Where texts are written: on an accelerator where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolved(config: Config, device: torch.device) -> Config:
    """The config with the precision that texts are written in on a device.

    Raises ConfigError for int8 weights on another device than a CPU.
    """
    settings, on_cpu = config.generation, device.type == "cpu"
    if settings.weights == "int8" and not on_cpu:
        raise ConfigError(
            "int8 weights are made for a CPU", where="generation.weights", next="leave it out"
        )
    precision = settings.precision
    if settings.weights == "int8":
        precision = "bf16"
    elif precision == "auto":
        precision = "fp32" if on_cpu else "bf16"
    chosen = settings.changed(precision=precision)
    return config.changed(generation=chosen)


def warning_of_precision(settings: GenerationConfig, n_texts: int) -> str | None:
    """A sentence where texts that are written together may change one another."""
    if settings.precision == "fp32" or n_texts < 2:
        return None
    exact = "generation.precision=fp32"
    if settings.weights == "int8":
        exact += " generation.weights=full"
    return (
        "the texts are computed in bf16, where a text of the same seed may differ from the one "
        f"that is written alone or in another batch; {exact} keeps them the same"
    )


def engine(config: Config, opened: Pretrained, device: torch.device | None = None) -> Engine:
    """The model on its device, with the asked precision and weights, ready to write."""
    device = device or usual_device()
    settings = resolved(config, device).generation
    model = load.load_model(opened, build.LANGUAGE_MODEL).eval()
    if settings.weights == "int8":
        model = int8.quantize(model)
    elif settings.precision == "bf16":
        model = int8.to_bf16(model)
    return Engine(model.to(device), opened.tokenizer, settings.micro_batch_size)
