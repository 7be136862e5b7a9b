"""Rotary positions whose frequencies depend on the length of a text (`longrope`, `dynamic`).

transformers uses the length of the longest text of a batch for all: the result of a text then
depends on the others. Here each document of each row has its own length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel


def use_document_lengths(model: PreTrainedModel) -> None:
    """Patches the model to use, for each document, the frequencies of that document's own length,
    however it is packed or padded. A model with fixed frequencies is not changed."""
    found = [module for module in model.modules() if _kinds(module)]
    for module in found:
        module.forward = _ByDocument(module)
    if found:
        model.base_model.register_forward_pre_hook(_add_positions, with_kwargs=True)


def with_positions(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of a causal model without `real`, which is False at padding; a model whose
    frequencies depend on the length of a text gets positions that do not count padding instead."""
    given = {name: value for name, value in inputs.items() if name != "real"}
    if "real" in inputs and _add_positions in model.base_model._forward_pre_hooks.values():
        given["position_ids"] = positions(inputs["real"], inputs.get("position_ids"))
    return given


def longrope_limit(model: PreTrainedModel) -> int | None:
    """Maximum number of tokens of a text with the frequencies for short texts, for models with two
    sets of frequencies; a longer text has the other set from its first token on. None for other
    models."""
    for module in model.modules():
        for layer_type, kind in _kinds(module).items():
            if kind == "longrope":
                return _length_limit(module, layer_type)
    return None


def depends_on_length(model: PreTrainedModel) -> bool:
    """Whether the frequencies of a model depend on the length of a text."""
    return any(_kinds(module) for module in model.modules())


def has_longrope(config: PretrainedConfig) -> bool:
    """Whether models with this config have two sets of frequencies (`longrope_limit`)."""
    settings = getattr(config, "rope_parameters", None) or {}
    by_layer = [each for each in settings.values() if isinstance(each, dict)]
    return any(each.get("rope_type") == "longrope" for each in (settings, *by_layer))


def positions(real: Tensor, given: Tensor | None = None) -> Tensor:
    """Positions [rows, columns] for rows in which `real` is False at padding, on either side.

    They are counted from a row's first token, unless `given`. Padding gets position 0: it belongs
    to no document.
    """
    counted = (real.long().cumsum(-1) - 1) if given is None else given
    return torch.where(real.bool(), counted, 0)


class _ByDocument:
    """The forward pass of a rotary embedding with a length for each document of each row."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.usual = module, module.forward

    def __call__(
        self, x: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> tuple[Tensor, Tensor]:
        own = {} if layer_type is None else {"layer_type": layer_type}
        kind = _kinds(self.module).get(layer_type)
        if kind is None or position_ids.ndim != 2:
            fixed: tuple[Tensor, Tensor] = self.usual(x, position_ids, **own)
            return fixed
        lengths, limit = _lengths(position_ids), _length_limit(self.module, layer_type)
        # All texts up to the limit share frequencies. Beyond it, longrope has one more set, and
        # dynamic a set for each length.
        classes = lengths > limit if kind == "longrope" else lengths.clamp(min=limit)
        cos, sin = None, None
        for each in torch.unique(classes).tolist():
            here = classes == each
            self._reset(layer_type)
            found = self.usual(x, torch.where(here, position_ids, 0), **own)
            if cos is None or sin is None:
                cos, sin = found
            cos = torch.where(here[..., None], found[0], cos)
            sin = torch.where(here[..., None], found[1], sin)
        assert cos is not None
        assert sin is not None
        return cos, sin

    def _reset(self, layer_type: str | None) -> None:
        """Clears the longest length so far, whose frequencies `dynamic` would reuse for shorter
        texts."""
        prefix = "" if layer_type is None else f"{layer_type}_"
        setattr(self.module, f"{prefix}max_seq_len_cached", 0)


def _kinds(module: nn.Module) -> dict[str | None, str]:
    """The length-dependent kinds of frequencies of a rotary embedding by layer type; the key is
    None if all layers share one."""
    kinds = getattr(module, "rope_type", None)
    by_layer = kinds if isinstance(kinds, dict) else {None: kinds}
    return {
        layer_type: kind
        for layer_type, kind in by_layer.items()
        if isinstance(kind, str) and (kind == "longrope" or "dynamic" in kind)
    }


def _length_limit(module: Any, layer_type: str | None) -> int:
    settings = module.config.rope_parameters
    settings = settings if layer_type is None else settings[layer_type]
    dynamic = _kinds(module)[layer_type] != "longrope"
    own = None if dynamic else settings.get("original_max_position_embeddings")
    return int(own or module.original_max_seq_len)


def _lengths(position_ids: Tensor) -> Tensor:
    """The length of the document of each token [rows, columns].

    A document ends where positions stop increasing by one. The length is the last position plus
    one, also if the start of the document is in a cache.
    """
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    number = starts.flatten().cumsum(0) - 1  # [rows * columns], counted over all rows
    longest = torch.zeros_like(number).scatter_reduce_(
        0, number, position_ids.flatten() + 1, reduce="amax"
    )
    return longest[number].view_as(position_ids)


def _add_positions(
    module: nn.Module, arguments: tuple[Any, ...], inputs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Adds positions that skip padding: if padding counted, all rows would be as long as the
    longest."""
    mask = inputs.get("attention_mask")
    counted = inputs.get("position_ids") is None and inputs.get("past_key_values") is None
    if not counted or mask is None or mask.ndim != 2:
        return None
    return arguments, {**inputs, "position_ids": positions(mask)}
