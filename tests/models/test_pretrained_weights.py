"""Weights are found under whichever name a file holds them; what is dropped or replaced is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertForPreTraining,
    BertForTokenClassification,
    PreTrainedModel,
)

from llmkit.errors import DataError
from llmkit.models import build, classifier, pretrained
from llmkit.models.pretrained import open_model

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
IDS = torch.arange(3, 13)[None]
MODELS = {
    "llama": build.LANGUAGE_MODEL, "gpt2": build.LANGUAGE_MODEL, "gpt_neox": build.LANGUAGE_MODEL,
    "transformer": build.LANGUAGE_MODEL, "bert": build.MASKED_MODEL,
    "modernbert": build.MASKED_MODEL, "distilbert": build.MASKED_MODEL,
}  # fmt: skip


def made(kind: str, purpose: build.Purpose, **settings: object) -> PreTrainedModel:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, **settings}
    config = build.model_config(kind, shape, 50, 64, SPECIAL, purpose)
    return build.new_model(config, 0, purpose).eval()


def stored(model: PreTrainedModel, directory: Path, dropped: str, shards: int = 1) -> str:
    """The model's directory, without one of two weights that are tied."""
    model.save_pretrained(directory)
    weights = {n: w.clone().contiguous() for n, w in model.state_dict().items() if n != dropped}
    (directory / "model.safetensors").unlink()
    if shards == 1:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return str(directory)
    files = [f"model-{n:05}-of-{shards:05}.safetensors" for n in range(1, shards + 1)]
    places = {name: files[n % shards] for n, name in enumerate(sorted(weights))}
    for file in files:
        part = {name: weights[name] for name in weights if places[name] == file}
        save_file(part, directory / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(directory)


def names_of_tied(model: PreTrainedModel) -> tuple[str, str]:
    modules = {id(module): name for name, module in model.named_modules()}
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    inside, outside = (f"{modules[id(module)]}.weight" for module in both)
    return inside, outside


def assert_equal(found: PreTrainedModel, expected: PreTrainedModel) -> None:
    """All weights of one model are in the other, to the bit, and the outputs are equal up to
    rounding: where a weight begins in memory decides how a library multiplies it."""
    weights = found.state_dict()
    assert all(torch.equal(weights[name], each) for name, each in expected.state_dict().items())
    outputs = (model(input_ids=IDS)[0] for model in (found, expected))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dropped", [0, 1], ids=["no-embedding", "no-output"])
@pytest.mark.parametrize("kind", MODELS)
def test_of_tied_weights_a_file_may_hold_either(kind, dropped, shards, tmp_path) -> None:
    purpose = MODELS[kind]
    model = made(kind, purpose, tie_word_embeddings=True)
    place = stored(model, tmp_path, names_of_tied(model)[dropped], shards)
    opened = open_model(place)
    assert_equal(pretrained.load_model(opened, purpose).eval(), model)
    config = classifier.existing_config(opened, {})
    classifier.ClassifierHead("single_label_classification", ("a", "b")).describe(config, 0)
    loaded = classifier.load_body(opened, config, seed=0).eval()
    assert_equal(loaded.base_model, model.base_model)
    loaded.save_pretrained(tmp_path / "saved")
    saved = pretrained.load_model(
        open_model(str(tmp_path / "saved")), build.CLASSIFIER_MODEL
    ).eval()
    assert_equal(saved, loaded)


def test_weights_that_are_not_tied_do_not_stand_for_each_other(tmp_path: Path) -> None:
    model = made("llama", build.LANGUAGE_MODEL, tie_word_embeddings=False)
    opened = open_model(stored(model, tmp_path, "model.embed_tokens.weight"))
    config = classifier.existing_config(opened, {})
    classifier.ClassifierHead("single_label_classification", ("a", "b")).describe(config, 0)
    with pytest.raises(DataError, match="embed_tokens"):
        classifier.load_body(opened, config, seed=0)
    with pytest.raises(DataError, match="embed_tokens"):
        pretrained.load_model(opened)


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


def test_a_head_that_is_dropped_is_named(tmp_path: Path) -> None:
    config = made("bert", build.MASKED_MODEL).config
    BertForPreTraining(config).save_pretrained(tmp_path)
    said: list[str] = []
    pretrained.load_model(open_model(str(tmp_path)), say=said.append)
    [line] = said
    assert "not used" in line
    assert "cls.seq_relationship" in line
    assert "cls.predictions" not in line


def test_a_whole_model_is_loaded_without_a_word(tmp_path: Path) -> None:
    model = made("llama", build.LANGUAGE_MODEL, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    said: list[str] = []
    pretrained.load_model(open_model(str(tmp_path)), say=said.append)
    assert said == []


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c")], ids=["same-shape", "other-shape"])
def test_the_head_of_another_task_is_replaced_and_named(names, tmp_path: Path) -> None:
    config = made("bert", build.MASKED_MODEL).config
    config.num_labels = 2
    before = BertForTokenClassification(config)
    with torch.no_grad():
        before.classifier.weight.fill_(7.0)
    before.save_pretrained(tmp_path)
    opened = open_model(str(tmp_path))
    shape = classifier.existing_config(opened, {})
    classifier.ClassifierHead("single_label_classification", names).describe(shape, 0)
    told = Listener()
    model = classifier.load_body(opened, shape, seed=0, reporter=told)
    assert float(model.classifier.weight.detach().abs().max()) < 1
    [line] = told.warned
    assert "BertForTokenClassification" in line
    assert "new" in line


def test_a_new_head_on_a_language_model_is_named(tmp_path: Path) -> None:
    model = made("llama", build.LANGUAGE_MODEL, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    opened = open_model(str(tmp_path))
    shape = classifier.existing_config(opened, {})
    classifier.ClassifierHead("single_label_classification", ("a", "b")).describe(shape, 0)
    told = Listener()
    classifier.load_body(opened, shape, seed=0, reporter=told)
    assert told.warned == []
    assert any(line.startswith("new weights") and "score" in line for line in told.said)
    assert any("not used: lm_head" in line for line in told.said)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_precision_of_stored_weights_is_known(dtype: torch.dtype, tmp_path: Path) -> None:
    made("llama", build.LANGUAGE_MODEL).to(dtype).save_pretrained(tmp_path)
    assert open_model(str(tmp_path)).is_stored_in_bf16 == (dtype is torch.bfloat16)
