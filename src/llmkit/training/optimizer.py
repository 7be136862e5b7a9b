"""AdamW, alone or with Muon, with its state as named tensors instead of a pickle."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llmkit.config.resolved import ResolvedTrain
from llmkit.errors import ConfigError, NoValidCheckpoint
from llmkit.models import classifier
from llmkit.models.classifier import head_weights
from llmkit.training import muon
from llmkit.training.muon import Halves, Muon
from llmkit.training.shards.files import StoredTensors

EMBEDDING_SCALE = 5.0
"""With Muon, the learning rate of token embeddings is this much higher than that of the output
layer: each row has a gradient only if its token occurs."""


class NamedOptimizer:
    """One or two torch optimizers over a model's named parameters, stepped as one.

    `adamw` decays matrices only (parameters of two or more dimensions except stacked vectors).
    `muon` orthogonalises the momentum of the hidden matrices, see `muon.hidden`, and leaves the
    rest to AdamW; input embeddings that are not also output weights then get a higher learning
    rate. With `layer_decay`, each layer has a lower learning rate than the one above it; with
    `head_scale`, a classifier's head has its own. The head of a regression is updated in the unit
    of its labels.
    """

    def __init__(self, model: nn.Module, kind: str, settings: ResolvedTrain) -> None:
        weight_decay, beta2 = settings.weight_decay, settings.adam_beta2
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not named:
            raise ConfigError("the model has no trainable weights", where="model")
        self.names = {parameter: name for name, parameter in named.items()}
        hidden = muon.hidden(model) if kind == "muon" else {}
        below = depths(model) if settings.layer_decay < 1 else {}
        scales = dict.fromkeys(_input_embeddings(model), EMBEDDING_SCALE) if kind == "muon" else {}
        if settings.head_scale != "auto":
            scales |= dict.fromkeys(head_weights(model), settings.head_scale)

        units = classifier.head_units(model)

        def grouped(names: Iterable[str]) -> list[dict[str, Any]]:
            groups: dict[tuple[float, float, float, Halves | None], list[nn.Parameter]] = {}
            for name in names:
                decay = weight_decay if _decays(name, named[name]) else 0.0
                scale = settings.layer_decay ** below.get(name, 0) * scales.get(name, 1.0)
                group = (decay, scale, units.get(name, 1.0), hidden.get(name))
                groups.setdefault(group, []).append(named[name])
            return [
                {**_in_unit(params, decay, scale, settings.adam_epsilon, unit), "halves": halves}
                for (decay, scale, unit, halves), params in groups.items()
            ]

        groups = grouped(name for name in named if name not in hidden)
        self.parts: list[torch.optim.Optimizer] = []
        if groups:
            self.parts.append(
                torch.optim.AdamW(
                    groups,
                    betas=(settings.adam_beta1, beta2),
                    eps=settings.adam_epsilon,
                    fused=True,
                )
            )
        if hidden:
            self.parts.append(Muon(grouped(sorted(hidden))))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All trainable weights."""
        return list(self.names)

    def step(self, learning_rate: float) -> None:
        """Update the weights at this learning rate."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate * group["scale"]
            part.step()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """The optimizer's state as `<parameter name>.<moment>` -> tensor."""
        return {
            f"{self.names[parameter]}.{key}": value
            for part in self.parts
            for parameter in _parameters(part)
            for key, value in part.state[parameter].items()
        }

    def load_state(self, stored: StoredTensors) -> None:
        """Restore the output of `state`, each process its part; raises NoValidCheckpoint if names
        or shapes differ."""
        unused = set(stored)
        for part in self.parts:
            for parameter in _parameters(part):
                prefix = self.names[parameter] + "."
                keys = [
                    key
                    for key in unused
                    if key.startswith(prefix) and "." not in key[len(prefix) :]
                ]
                unused -= set(keys)
                if any(stored.shape(key) not in ((), tuple(parameter.shape)) for key in keys):
                    raise NoValidCheckpoint(f"optimizer state of {prefix[:-1]} has another shape")
                part.state[parameter] = {
                    key[len(prefix) :]: stored.like(key, parameter) for key in keys
                }
        if unused:
            raise NoValidCheckpoint(f"optimizer state of unknown weights: {sorted(unused)[:3]}")


def _in_unit(
    params: list[nn.Parameter], decay: float, scale: float, epsilon: float, unit: float
) -> dict[str, Any]:
    """Scale a group's steps by `unit`, as if its weights were `unit` times smaller and its
    gradients larger: Adam's step is independent of the gradient scale except for epsilon."""
    return {
        "params": params,
        "weight_decay": decay / unit,
        "scale": scale * unit,
        "eps": epsilon / unit,
    }


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, but not to vectors or stacks of them, such as the
    biases of experts."""
    return parameter.ndim >= 2 and not name.endswith("bias")


def _input_embeddings(model: nn.Module) -> Iterator[str]:
    """Names of the token embeddings, unless they are also the output weights."""
    ends = [getattr(model, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output")]
    weights = [getattr(end, "weight", None) for end in ends]
    for name, parameter in model.named_parameters():
        if parameter is weights[0] and parameter is not weights[1]:
            yield name


def depths(model: nn.Module) -> dict[str, int]:
    """The number of layers above each weight: 0 for the head and everything after the last layer,
    the number of layers + 1 for the embeddings."""
    numbers = {
        name: int(found.group(1)) if (found := re.search(r"\.(\d+)\.", name)) else None
        for name, _ in model.named_parameters()
    }
    n_layers = 1 + max((number for number in numbers.values() if number is not None), default=-1)
    above, result = n_layers + 1, {}
    for name, number in numbers.items():
        if number is not None:
            above = n_layers - number
        result[name] = above if number is not None or above > n_layers else 0
    return result


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]
