"""Families of tiny dense models: branches of one seed, with or without a common trunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from llmkit.models import build
from llmkit.models.experts import twins
from llmkit.models.experts.merge import MergedModel
from llmkit.models.experts.record import Expert, ExpertsRecord, Frozen, state_hash
from llmkit.models.experts.sources import ExpertSource
from llmkit.models.experts.statistics import DomainStatistics, measure_domain

VOCABULARY = 61
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def dense(kind: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A tiny dense model with weights large enough that its layers matter."""
    config = build.model_config(kind, {**SHAPE, **settings}, VOCABULARY, 64, SPECIAL)
    model = build.causal_model(config, seed).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.mul_(5)
    return model


def branches(kind: str, count: int = 3, trunk: bool = False, **settings: Any) -> list[Any]:
    """Models that differ in their feed-forward networks, and without `trunk` in everything."""
    models = [dense(kind, seed, **settings) for seed in range(count)]
    if trunk:
        shared = {n: w for n, w in models[0].state_dict().items() if not twins.is_feed_forward(n)}
        for model in models[1:]:
            model.load_state_dict(shared, strict=False)
    return models


def tokens(rows: int = 2, columns: int = 24, seed: int = 0) -> torch.Tensor:
    """Random token ids [rows, columns]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (rows, columns), generator=generator)


def statistics(model: PreTrainedModel, seed: int) -> DomainStatistics:
    """The statistics of a domain of random tokens."""
    ids = tokens(4, 24, seed)
    frequency = torch.bincount(ids.flatten(), minlength=VOCABULARY)
    return measure_domain(model, [{"input_ids": ids}], frequency)


def sources(
    models: list[Any], names: Sequence[str] = "abcdefgh", frozen: Frozen = "none"
) -> list[ExpertSource]:
    """The models as experts to merge."""
    found = []
    for number, (name, model) in enumerate(zip(names, models, strict=False)):
        state = twins.dense_states(model)[0]
        expert = Expert(name, state_hash(state), statistics(model, number))
        record = ExpertsRecord(
            "branch", [expert], "seed", "tokenizer", frozen, model.config.to_dict(), {}
        )
        found.append(ExpertSource(expert, record, name, lambda state=state: state))
    return found


def built(merged: MergedModel) -> PreTrainedModel:
    """The whole model of a merge."""
    parts = list(merged.parts)
    state = {name: weight for part in parts for name, weight in part.items()}
    assert len(state) == sum(map(len, parts))
    return twins.model_of(merged.outline.config, state)
