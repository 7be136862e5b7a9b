"""Shares, losses of single experts and the regret of routing equal their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmkit.evaluation.experts import ScoredText, measure_experts, unused_experts
from llmkit.evaluation.scored_rows import CausalRows
from llmkit.evaluation.segments import Segments, Survey
from llmkit.evaluation.windows import ScoringProtocol, Windows
from llmkit.models.experts import merge, routing
from llmkit.models.experts.record import ExpertsRecord
from tests.jobs import token_file
from tests.models.experts.families import branches, built, sources

DOCUMENTS = [[5, 9, 11, 3, 8, 20], [7, 7, 30, 31], [40, 41, 42, 43, 44, 45, 46], [12, 13]]
DOMAINS = np.array([0, 1, 1, 0])


@pytest.fixture
def found(processes, watch) -> tuple[ScoredText, object, ExpertsRecord, dict]:
    given = sources(branches("qwen3", trunk=True))
    model = built(merge.mixture(given, "average", "fit", 2, 0)).eval()
    record = ExpertsRecord("moe", [e.expert for e in given], "", "", "trunk",
                           given[0].record.dense, {})  # fmt: skip
    tokens = token_file(DOCUMENTS, 0, 0)
    sizes = np.array([len(document) for document in DOCUMENTS], dtype=float)
    segments = Segments("documents", tokens.starts, sizes, np.arange(len(DOCUMENTS)))
    survey = Survey(19, ("x", "y"), DOMAINS)
    how = ScoringProtocol(16, 16, "separate", "document", True)
    text = ScoredText(CausalRows(Windows(tokens, how)), segments, survey, processes, None, watch)
    return text, model, record, measure_experts(model, record, text.score(model), text)


def documents(domain: int) -> list[torch.Tensor]:
    return [
        torch.tensor([[0, *document, 0]])
        for document, number in zip(DOCUMENTS, DOMAINS, strict=True)
        if number == domain
    ]


@torch.no_grad()
def test_the_loss_of_each_expert_is_that_of_its_branch(found) -> None:
    _, model, record, tables = found
    rows = {(row["domain"], row["expert"]): row for row in tables["experts"]}
    for expert, name in zip(routing.members(model, record), record.names, strict=True):
        for number, domain in enumerate("xy"):
            nll = sum(
                -expert(ids[:, :-1]).logits.double().log_softmax(-1)[0]
                .gather(1, ids[0, 1:, None]).sum().item()
                for ids in documents(number)
            )  # fmt: skip
            size = sum(ids.shape[1] - 2 for ids in documents(number))
            bits = rows[domain, name]["bits_per_byte_alone"]
            assert bits == pytest.approx(nll / math.log(2) / size, rel=1e-5)


@torch.no_grad()
def test_shares_are_the_mean_weights_of_the_tokens(found) -> None:
    _, model, record, tables = found
    for number, domain in enumerate("xy"):
        weights = [
            routing.expert_weights(model, {"input_ids": ids[:, :-1]})[:, 0]
            for ids in documents(number)
        ]
        mean = torch.cat(weights, dim=1).mean(1)  # [layers, experts]
        for expert, name in enumerate(record.names):
            row = next(
                row for row in tables["experts"] if (row["domain"], row["expert"]) == (domain, name)
            )
            assert row["share_by_layer"] == pytest.approx(mean[:, expert].tolist(), abs=1e-5)
            assert row["share"] == pytest.approx(mean[:, expert].mean().item(), abs=1e-5)


def test_regret_is_the_loss_above_the_best_expert(found) -> None:
    text, model, _, tables = found
    routed = text.bits_per_byte(text.score(model))
    for number, row in enumerate(tables["routing"]):
        alone = {
            each["expert"]: each["bits_per_byte_alone"]
            for each in tables["experts"]
            if each["domain"] == row["domain"]
        }
        assert row["best_expert"] == min(alone, key=alone.__getitem__)
        assert row["regret"] == pytest.approx(routed[number] - min(alone.values()))


def test_an_expert_that_its_own_domain_does_not_use_is_warned_of() -> None:
    rows = [
        {"domain": "law", "expert": "law", "share": 0.004},
        {"domain": "law", "expert": "code", "share": 0.996},
        {"domain": "code", "expert": "code", "share": 0.4},
    ]
    (sentence,) = unused_experts("runs/x", rows)
    assert "law" in sentence
    assert "0.4%" in sentence


def test_an_expert_without_a_measured_domain_is_warned_of_if_nothing_is_routed_to_it() -> None:
    def rows(most: float) -> list[dict]:
        return [
            {"domain": "code", "expert": "code", "share": 1 - most},
            {"domain": "code", "expert": "law", "share": most},
            {"domain": "poems", "expert": "code", "share": 1.0},
            {"domain": "poems", "expert": "law", "share": 0.0},
        ]

    assert unused_experts("runs/x", rows(0.02)) == []
    (sentence,) = unused_experts("runs/x", rows(0.004))
    assert "law has at most 0.4%" in sentence
