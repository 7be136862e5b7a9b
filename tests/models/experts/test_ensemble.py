"""An ensemble is a Bayesian mixture of its experts, however it is read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from llmkit.models.experts.ensemble import EnsembleForCausalLM, ensemble_config
from tests.models.experts.families import branches, dense, tokens


def ensemble(models: list) -> EnsembleForCausalLM:
    return EnsembleForCausalLM(
        ensemble_config("abc"[: len(models)], models[0].config), models
    ).eval()


def seen(model, ids: torch.Tensor) -> torch.Tensor:
    """The log probabilities [rows, columns - 1] of the ids but the first."""
    with torch.no_grad():
        chances = model(ids).logits.double().log_softmax(-1)
    return chances[:, :-1].gather(2, ids[:, 1:, None])[..., 0]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_the_probability_of_a_text_is_the_mean_over_the_experts(kind) -> None:
    models, ids = branches(kind), tokens(3, 20)
    each = torch.stack([seen(model, ids).sum(1) for model in models])
    expected = torch.logsumexp(each, 0) - math.log(len(models))
    found = seen(ensemble(models), ids).sum(1)
    assert torch.allclose(found, expected, atol=1e-3)
    assert bool((-found <= -each.max(0).values + math.log(len(models)) + 1e-3).all())


def test_an_ensemble_of_one_is_that_model() -> None:
    model = dense("llama")
    found = ensemble([model])(tokens()).logits
    assert torch.allclose(found, model(tokens()).logits.log_softmax(-1), atol=1e-5)


def test_every_document_of_a_row_begins_anew() -> None:
    models, ids = branches("llama"), tokens(1, 20)
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    together = ensemble(models)(ids, position_ids=positions).logits
    for part in (slice(0, 8), slice(8, 20)):
        alone = ensemble(models)(ids[:, part]).logits
        assert torch.allclose(together[:, part], alone, atol=1e-4)


def test_a_token_at_a_time_gives_the_same_as_the_whole_text() -> None:
    models, ids = branches("qwen3"), tokens(2, 16)
    whole = ensemble(models)(ids).logits
    for cache in (DynamicCache(), DynamicCache(config=ensemble(models).config)):
        parts = [
            ensemble(models)(ids[:, begin:end], past_key_values=cache, use_cache=True).logits
            for begin, end in [(0, 5), *((n, n + 1) for n in range(5, 12)), (12, 16)]
        ]
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)


def test_only_the_wanted_logits_are_returned() -> None:
    models = branches("llama")
    whole = ensemble(models)(tokens()).logits
    assert torch.equal(ensemble(models)(tokens(), logits_to_keep=1).logits, whole[:, -1:])


def test_an_ensemble_is_one_directory_for_each_expert(tmp_path: Path) -> None:
    models = branches("llama")
    ensemble(models).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(tokens()).logits, ensemble(models)(tokens()).logits)
    for name, model in zip("abc", models, strict=True):
        part = AutoModelForCausalLM.from_pretrained(tmp_path / "experts" / name)
        assert torch.equal(part(tokens()).logits, model(tokens()).logits)


@torch.no_grad()
def test_beams_are_those_of_the_probabilities() -> None:
    model, begin, steps, beams = ensemble(branches("llama")), tokens(1, 4), 3, 4
    found = model.generate(
        begin, num_beams=beams, num_return_sequences=beams, max_new_tokens=steps, do_sample=False,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    kept = [(0.0, begin[0])]
    for _ in range(steps):  # beam search by its definition, without a cache
        grown = []
        for score, text in kept:
            chances = model(text[None], use_cache=False).logits[0, -1].double().log_softmax(-1)
            grown += [
                (score + chance, torch.cat([text, torch.tensor([token])]))
                for token, chance in enumerate(chances.tolist())
            ]
        kept = sorted(grown, key=lambda each: -each[0])[:beams]
    assert [row.tolist() for row in found] == [text.tolist() for _, text in kept]
