"""Rotary positions whose frequencies depend on how long a text is (`longrope`, `dynamic`).

transformers takes the longest text of a batch for the length of all: what a text gets then depends
on its company. Here each document of each row has its own length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def use_document_lengths(model: PreTrainedModel) -> None:
    """Has the model compute each document, packed or padded in whatever batch, with the frequencies
    that it has alone. A model whose frequencies are fixed is left as it is."""
    found = [module for module in model.modules() if _kinds(module)]
    for module in found:
        module.forward = _ByDocument(module)
    if found:
        model.base_model.register_forward_pre_hook(_positioned, with_kwargs=True)


def placed(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of a causal model without `real`, which is False at padding: a model whose
    frequencies depend on the length of a text gets positions that do not count padding."""
    given = {name: value for name, value in inputs.items() if name != "real"}
    if "real" in inputs and _positioned in model.base_model._forward_pre_hooks.values():
        given["position_ids"] = positions(inputs["real"], inputs.get("position_ids"))
    return given


def border(model: PreTrainedModel) -> int | None:
    """Most tokens of a text with the frequencies of short ones, for models that have two sets of
    frequencies; a longer text has the others from its first token on."""
    for module in model.modules():
        for layer_type, kind in _kinds(module).items():
            if kind == "longrope":
                return _border(module, layer_type)
    return None


def positions(real: Tensor, given: Tensor | None = None) -> Tensor:
    """Positions [rows, columns] for rows in which `real` is False at padding on either side, which
    gets position 0: it belongs to no document. Counted from a row's first token, if not `given`."""
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
        lengths, limit = _lengths(position_ids), _border(self.module, layer_type)
        # Texts up to the limit are alike; beyond, longrope knows one kind, dynamic every length.
        classes = lengths > limit if kind == "longrope" else lengths.clamp(min=limit)
        cos, sin = None, None
        for each in torch.unique(classes).tolist():
            here = classes == each
            self._forget(layer_type)
            found = self.usual(x, torch.where(here, position_ids, 0), **own)
            if cos is None or sin is None:
                cos, sin = found
            cos = torch.where(here[..., None], found[0], cos)
            sin = torch.where(here[..., None], found[1], sin)
        assert cos is not None
        assert sin is not None
        return cos, sin

    def _forget(self, layer_type: str | None) -> None:
        """The longest text so far, whose frequencies `dynamic` would give to shorter ones too."""
        prefix = "" if layer_type is None else f"{layer_type}_"
        setattr(self.module, f"{prefix}max_seq_len_cached", 0)


def _kinds(module: nn.Module) -> dict[str | None, str]:
    """The kinds of frequencies of a rotary embedding that depend on the length, by type of layer;
    by None where all layers share them."""
    kinds = getattr(module, "rope_type", None)
    by_layer = kinds if isinstance(kinds, dict) else {None: kinds}
    return {
        layer_type: kind
        for layer_type, kind in by_layer.items()
        if isinstance(kind, str) and (kind == "longrope" or "dynamic" in kind)
    }


def _border(module: Any, layer_type: str | None) -> int:
    settings = module.config.rope_parameters
    settings = settings if layer_type is None else settings[layer_type]
    dynamic = _kinds(module)[layer_type] != "longrope"
    own = None if dynamic else settings.get("original_max_position_embeddings")
    return int(own or module.original_max_seq_len)


def _lengths(position_ids: Tensor) -> Tensor:
    """The length of the document of each token [rows, columns]: a document ends where positions do
    not count on. One whose beginning is in a cache is as long as its last position says."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    number = starts.flatten().cumsum(0) - 1  # [rows * columns], counted over all rows
    longest = torch.zeros_like(number).scatter_reduce_(
        0, number, position_ids.flatten() + 1, reduce="amax"
    )
    return longest[number].view_as(position_ids)


def _positioned(
    module: nn.Module, arguments: tuple[Any, ...], inputs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Counts the positions of padded rows by their tokens: with padding counted too, all rows would
    be as long as the longest."""
    mask = inputs.get("attention_mask")
    counted = inputs.get("position_ids") is None and inputs.get("past_key_values") is None
    if not counted or mask is None or mask.ndim != 2:
        return None
    return arguments, {**inputs, "position_ids": positions(mask)}
