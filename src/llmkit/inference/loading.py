"""Load a language model for generation, config and tokenizer first, so that errors come early."""

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


def open_language_model(config: Config) -> Pretrained:
    """The configured model without its weights, checked as `checked` does."""
    return checked(pretrained.of_config(config))


def checked(model: Pretrained | None) -> Pretrained:
    """A model that can generate text.

    Raises UsageError if no model is named, and DataError if it is not a causal language model.
    """
    if model is None:
        raise UsageError("no model is named", next="name one with --model")
    model.check_causal()
    return model


def constraint(config: Config, model: Pretrained) -> Constrain | None:
    """The constraint on the texts, checked as far as possible without the model."""
    ends = end_ids(getattr(model.config, "eos_token_id", None), model.tokenizer.eos_token_id)
    return constraints.constrain(config.generation, model.tokenizer, ends)


def usual_device() -> torch.device:
    """The device to generate on: an accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolved(config: Config, device: torch.device) -> Config:
    """The config with its precision for generation resolved for a device.

    Raises ConfigError for int8 weights on any device but a CPU.
    """
    settings, on_cpu = config.generation, device.type == "cpu"
    if settings.weights == "int8" and not on_cpu:
        raise ConfigError(
            "int8 weights need a CPU", where="generation.weights", next="remove this key"
        )
    precision = settings.precision
    if settings.weights == "int8":
        precision = "bf16"
    elif precision == "auto":
        precision = "fp32" if on_cpu else "bf16"
    chosen = settings.changed(precision=precision)
    return config.changed(generation=chosen)


def warning_of_precision(settings: GenerationConfig, n_texts: int) -> str | None:
    """A warning if texts that are generated together may affect each other."""
    if settings.precision == "fp32" or n_texts < 2:
        return None
    exact = "generation.precision=fp32"
    if settings.weights == "int8":
        exact += " generation.weights=full"
    return (
        "the texts are generated in bf16, where a text may depend on the others of its batch; "
        f"{exact} makes texts independent of the batch"
    )


def engine(config: Config, opened: Pretrained, device: torch.device | None = None) -> Engine:
    """Loads the model on its device in the configured precision, ready to generate."""
    device = device or usual_device()
    settings = resolved(config, device).generation
    model = load.load_model(opened, build.LANGUAGE_MODEL).eval()
    if settings.weights == "int8":
        model = int8.quantize(model)
    elif settings.precision == "bf16":
        model = int8.to_bf16(model)
    return Engine(model.to(device), opened.tokenizer, settings.micro_batch_size)
