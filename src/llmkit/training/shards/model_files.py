"""The weights of a model as the files that plain transformers reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from llmkit.models import lora
from llmkit.models.experts import twins
from llmkit.storage.tensor_files import Outline, in_usual_order, outlined
from llmkit.training.shards import parts
from llmkit.training.shards.files import TensorGroup, TensorSet


def is_streamable(model: PreTrainedModel) -> bool:
    """Whether the files of a model are those of its weights: the class does not save itself in
    another way."""
    return type(model).save_pretrained is PreTrainedModel.save_pretrained


def model_tensors(model: PreTrainedModel) -> TensorSet:
    """The weights of a model as plain transformers names and stacks them, tied ones once, with
    LoRA updates merged. All processes must call it."""
    state = lora.merged(model) if lora.is_attached(model) else model.state_dict()
    outline = {
        name: torch.empty(weight.shape, dtype=weight.dtype, device="meta")
        for name, weight in state.items()
    }
    outline = twins.untied(model, outline)
    stored = _outlines(model, outline)
    made = [_group(model, state, outline, names) for names in _groups(model, outline, stored)]
    made.sort(key=_place)
    facts = {"total_parameters": model.num_parameters()}
    return TensorSet("model", "the weight", made, facts=facts)


def _place(group: TensorGroup) -> tuple[int, str]:
    """The place of a group among others: that of its first tensor in the safetensors library."""
    name, outline = next(iter(group.outlines.items()))
    return -outline.dtype.itemsize, name


def _groups(
    model: PreTrainedModel, outline: Mapping[str, Tensor], stored: Mapping[str, Outline]
) -> list[list[str]]:
    """The smallest groups of weights that transformers can store apart: single weights, for some
    architectures layers, else all."""
    single = [[name] for name in outline]
    layers: dict[str, list[str]] = {}
    for name in outline:
        layers.setdefault(twins.layer_name(name), []).append(name)
    for groups in (single, list(layers.values())):
        found: dict[str, Outline] = {}
        for names in groups:
            found |= _outlines(model, {name: outline[name] for name in names})
        if found == stored:
            return groups
    return [list(outline)]


def _outlines(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> dict[str, Outline]:
    stored = revert_weight_conversion(model, dict(weights))
    return {name: outlined(weight) for name, weight in stored.items()}


def _group(
    model: PreTrainedModel,
    state: Mapping[str, Tensor],
    outline: Mapping[str, Tensor],
    names: Collection[str],
) -> TensorGroup:
    def make(owner: int | None) -> dict[str, Tensor] | None:
        whole = {name: parts.whole_on(state[name], owner) for name in names}
        present = {name: weight for name, weight in whole.items() if weight is not None}
        return revert_weight_conversion(model, present) if present else None

    return TensorGroup(
        in_usual_order(_outlines(model, {name: outline[name] for name in names})), make
    )
