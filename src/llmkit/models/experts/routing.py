"""Which experts read a text: their weights as they come, and models that use only some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.errors import ConfigError
from llmkit.models import build, pretrained, rope
from llmkit.models.directory import EXPERTS_DIRECTORY
from llmkit.models.experts import twins
from llmkit.models.experts.ensemble import EnsembleForCausalLM, ensemble_config
from llmkit.models.experts.record import ExpertsRecord, merged_record
from llmkit.models.pretrained import Pretrained


def expert_weights(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """The weight of each expert at each token, fp32 [layers, rows, columns, experts]; an ensemble
    has one layer. The weights of a token sum to 1 where the model normalises them."""
    inputs = rope.with_positions(model, dict(inputs))
    rows, columns = inputs["input_ids"].shape
    if isinstance(model, EnsembleForCausalLM):
        shares: Tensor = model(**inputs, use_cache=False, logits_to_keep=0).shares
        return shares.float().transpose(1, 2)[None]
    found: list[Tensor] = []

    def note(router: Any, _: Any, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
        logits, weights, chosen = outputs
        dense = torch.zeros_like(logits, dtype=torch.float32)
        found.append(dense.scatter(1, chosen, weights.float()))

    routers = [twins.router_of(block) for block in twins.expert_blocks(model).values()]
    hooks = [router.register_forward_hook(note) for router in routers]
    try:
        model.base_model(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found).view(len(routers), rows, columns, -1)


def members(model: PreTrainedModel, record: ExpertsRecord) -> list[PreTrainedModel]:
    """Each expert as a model by itself, which shares its weights with the merged one."""
    if isinstance(model, EnsembleForCausalLM):
        experts: Any = model.experts
        return list(experts)
    config = record.dense_config
    states = twins.dense_states(model)
    return [twins.model_of(config, state).eval().to(model.device) for state in states]


def load_experts(opened: Pretrained, names: Sequence[str]) -> PreTrainedModel:
    """The causal model with only these experts; all of them if there are no names. Of an ensemble,
    no others are loaded.

    Raises ConfigError for a model without these experts.
    """
    record = merged_record(opened)
    if not names:
        return pretrained.load_model(opened, build.LANGUAGE_MODEL)
    chosen = _known(record, names)
    assert record is not None
    if record.kind != "ensemble":
        return routed_to(pretrained.load_model(opened, build.LANGUAGE_MODEL), record, chosen)
    if len(chosen) == 1:
        part = pretrained.open_model(str(Path(opened.location) / EXPERTS_DIRECTORY / chosen[0]))
    else:
        part = replace(opened, config=ensemble_config(chosen, record.dense_config))
    return pretrained.load_model(part, build.LANGUAGE_MODEL)


def _known(record: ExpertsRecord | None, names: Sequence[str]) -> list[str]:
    """The names in order, without repeats; raises ConfigError for experts that do not exist."""
    known = [] if record is None else record.names
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f"the model has no expert of {', '.join(unknown)}",
            where="generation.experts",
            next=f"its experts are {', '.join(known)}"
            if known
            else "remove generation.experts: "
            "only models written by `llmkit merge` have experts with names",
        )
    return sorted(set(names))


def routed_to(
    model: PreTrainedModel, record: ExpertsRecord, names: Sequence[str]
) -> PreTrainedModel:
    """A mixture of experts that routes to these experts alone; one of them is a dense model."""
    chosen = [record.names.index(name) for name in names]
    if len(chosen) == 1:
        return members(model, record)[chosen[0]]
    for block in twins.expert_blocks(model).values():
        twins.router_of(block).register_forward_hook(_OnlyTo(chosen, model.config))
    return model


class _OnlyTo:
    """Replaces what a router returns, as if the other experts had no chance."""

    def __init__(self, chosen: Sequence[int], config: Any) -> None:
        self.chosen = list(chosen)
        self.normalises = bool(getattr(config, "norm_topk_prob", True))

    def __call__(
        self, router: Any, _: Any, outputs: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, experts = outputs
        barred = torch.full_like(logits, -torch.inf)
        barred[:, self.chosen] = 0
        chances = torch.softmax((logits + barred).float(), dim=-1)
        best, experts = chances.topk(experts.shape[1], dim=-1)
        if self.normalises:
            best = best / best.sum(dim=-1, keepdim=True)
        return logits, best.to(weights.dtype), experts
