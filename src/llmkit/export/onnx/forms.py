"""What goes into an ONNX model and comes out of it: tensors with names, and axes with names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from llmkit.errors import ConfigError
from llmkit.models import build

Axes = tuple[str | None, ...]
"""The name of each axis of a tensor; None for one of a fixed size."""

BATCH, SEQUENCE, PAST, TOTAL = "batch", "sequence", "past", "past + sequence"
_TOKENS: Axes = (BATCH, SEQUENCE)

POSITIONS = ("start_logits", "end_logits")
"""The outputs of a model that answers questions."""


@dataclass(frozen=True)
class OnnxForm:
    """A model as a function of tensors."""

    module: nn.Module
    """Takes the inputs in their order, and returns the outputs as a tuple."""
    inputs: Mapping[str, Axes]
    outputs: Mapping[str, Axes]
    example: tuple[Tensor, ...]
    """Inputs whose axes have other sizes than 1, which torch would take as fixed."""

    @property
    def dynamic(self) -> list[dict[int, Any]]:
        """The axes of each input that may have any size, as torch.export takes them."""
        free = torch.export.Dim.DYNAMIC
        return [
            {number: free for number, name in enumerate(axes) if name is not None}
            for axes in self.inputs.values()
        ]


class _Labeller(nn.Module):
    """A model with its inputs in an order, and those of its outputs that are named."""

    def __init__(
        self, model: PreTrainedModel, names: Sequence[str], outputs: Sequence[str] = ("logits",)
    ) -> None:
        super().__init__()
        self.model, self.names, self.outputs = model, tuple(names), tuple(outputs)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**dict(zip(self.names, given, strict=True)))
        return tuple(found[name] for name in self.outputs)


def labelling_form(model: PreTrainedModel, names: Sequence[str], each_token: bool) -> OnnxForm:
    """A classifier, or with `each_token` a tagger or masked model, with inputs of these names."""
    example = tuple(torch.ones(2, 8, dtype=torch.long) for _ in names)
    return OnnxForm(
        _Labeller(model, names).eval(),
        dict.fromkeys(names, _TOKENS),
        {"logits": (*_TOKENS, None) if each_token else (BATCH, None)},
        example,
    )


def answering_form(model: PreTrainedModel, names: Sequence[str]) -> OnnxForm:
    """A model that answers questions: the logits of the first and of the last token."""
    outputs = dict.fromkeys(POSITIONS, _TOKENS)
    form = labelling_form(model, names, each_token=True)
    return replace(form, module=_Labeller(model, names, POSITIONS).eval(), outputs=outputs)


class _Continuer(nn.Module):
    """A causal model with its KV cache as tensors: keys and values of each layer in turn."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        input_ids, attention_mask, position_ids, *past = given
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(keys, values, layer)
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (found.logits, *_flat(found.past_key_values))


def _flat(cache: Any) -> Iterator[Tensor]:
    for layer in cache.layers:
        yield from (layer.keys, layer.values)


def continuing_form(model: PreTrainedModel) -> OnnxForm:
    """A causal language model with its KV cache.

    Raises ConfigError for a model without keys and values.
    """
    if hasattr(model.config, build.TOP_K):  # torch has no ONNX for the usual way to route tokens
        model.set_experts_implementation("batched_mm")
    past = empty_past(model, rows=2, columns=3)
    names = [f"{layer}.{part}" for layer in range(len(past) // 2) for part in ("key", "value")]
    ids = torch.ones(2, 4, dtype=torch.long)
    positions = torch.arange(3, 7).expand(2, 4).contiguous()
    return OnnxForm(
        _Continuer(model).eval(),
        {
            "input_ids": _TOKENS,
            "attention_mask": (BATCH, TOTAL),
            "position_ids": _TOKENS,
            **{f"past_key_values.{name}": (BATCH, None, PAST, None) for name in names},
        },
        {
            "logits": (*_TOKENS, None),
            **{f"present.{name}": (BATCH, None, TOTAL, None) for name in names},
        },
        (ids, torch.ones(2, 7, dtype=torch.long), positions, *past),
    )


@torch.no_grad()
def empty_past(model: PreTrainedModel, rows: int, columns: int = 0) -> list[Tensor]:
    """Keys and values of 0 for each layer, each [rows, heads, columns, channels]."""
    cache = DynamicCache()
    model(input_ids=torch.ones(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
    have = [isinstance(getattr(layer, "keys", None), Tensor) for layer in cache.layers]
    if not (have and all(have)):
        raise ConfigError(
            f"a {model.config.model_type} model has layers without keys and values, and no KV "
            "cache in ONNX",
            where="model.name_or_path",
            next="use `--format safetensors`",
        )
    return [each.new_zeros(rows, each.shape[1], columns, each.shape[3]) for each in _flat(cache)]
