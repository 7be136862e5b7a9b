"""An ensemble is a Bayesian mixture of its experts, however it is read."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, DynamicCache

from llmkit.errors import DataError, InputNotFound, NoValidCheckpoint, Unsafe
from llmkit.models import pretrained
from llmkit.models.experts import twins
from llmkit.models.experts.ensemble import EnsembleForCausalLM, ensemble_config
from llmkit.storage import atomic
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


def test_every_document_of_a_row_begins_again() -> None:
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


@pytest.mark.parametrize("kind", ["llama", "gpt2", "transformer"])
def test_an_ensemble_of_any_architecture_is_found_and_loaded(kind: str, tmp_path: Path) -> None:
    models = branches(kind)
    ensemble(models).save_pretrained(tmp_path)
    again = pretrained.load_model(pretrained.open_model(str(tmp_path))).eval()
    assert torch.equal(again(tokens()).logits, ensemble(models)(tokens()).logits)


def test_an_ensemble_keeps_the_weights_of_its_experts() -> None:
    models = branches("qwen3")
    rebuilt = [twins.model_of(m.config, twins.dense_states(m)[0]) for m in models]
    states = [{n: w.clone() for n, w in m.state_dict().items()} for m in models]
    for expert, state in zip(ensemble(rebuilt).experts, states, strict=True):
        assert all(torch.equal(w, state[name]) for name, w in expert.state_dict().items())


@pytest.mark.parametrize("name", ["../llama", "a/b", "", ".", "-a", 3, "a" * 61])
def test_names_that_lead_out_of_the_directory_are_unsafe(name: object, tmp_path: Path) -> None:
    ensemble(branches("llama")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "experts": ["a", name]}))
    with pytest.raises(Unsafe, match="outside its directory"):
        pretrained.open_model(str(tmp_path))
    if isinstance(name, str):
        with pytest.raises(StrictDataclassError, match="cannot name an expert"):
            AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_part_of_an_ensemble_is_checked_like_a_model(tmp_path: Path) -> None:
    ensemble(branches("llama")).save_pretrained(tmp_path)
    weights = tmp_path / "experts/b/model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(Unsafe, match="pickle"):
        pretrained.open_model(str(tmp_path))
    weights.with_suffix(".bin").unlink()
    with pytest.raises(InputNotFound, match="no weights"):
        pretrained.open_model(str(tmp_path))
    shutil.rmtree(tmp_path / "experts/b")
    with pytest.raises(DataError, match="the expert b"):
        pretrained.open_model(str(tmp_path))


def test_a_damaged_expert_is_found_by_the_manifest_of_the_ensemble(tmp_path: Path) -> None:
    atomic.commit(tmp_path / "final", ensemble(branches("llama")).save_pretrained, {})
    weights = tmp_path / "final/experts/b/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    pretrained.load_model(pretrained.open_model(str(weights.parents[1] / "a")))
    with pytest.raises(NoValidCheckpoint):
        pretrained.load_model(pretrained.open_model(str(weights.parent)))


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
