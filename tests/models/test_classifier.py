"""Classifiers of every kind of architecture: built, loaded, padded, frozen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
)

from llmkit.errors import ConfigError, DataError
from llmkit.models import build, classifier, pretrained, tokenizer_saving
from llmkit.models import tokenizer as tokenizers
from llmkit.models.classifier import ClassifierHead
from llmkit.models.pretrained import open_model

ENCODERS = ("bert", "roberta", "deberta-v2", "modernbert", "distilbert", "electra")
ARCHITECTURES = (*ENCODERS, "gpt2", "llama", "qwen3")
TEXTS = ["the cat sat on the mat", "a dog ran", "it was good, very good indeed"] * 20
HEAD = ClassifierHead("single_label_classification", ("x", "y", "z"))
LENGTH = 12


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train_bpe_with_frame(TEXTS, 300)


def small(architecture: str, tokenizer, head: ClassifierHead = HEAD, seed: int = 0):
    shape = {"hidden_size": 32, "num_hidden_layers": 2}
    config = classifier.new_config(architecture, shape, tokenizer, LENGTH)
    return build.classifier(head.describe(config, tokenizer.pad_token_id), seed)


@torch.no_grad()
def logits(model, ids, mask=None) -> torch.Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    return model.eval()(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_architecture_reads_texts_as_long_as_was_asked(architecture, tokenizer) -> None:
    model = small(architecture, tokenizer)
    assert classifier.longest_text(model.config, tokenizer) == LENGTH
    ids = torch.randint(4, len(tokenizer), (2, LENGTH))
    assert logits(model, ids).shape == (2, 3)
    assert model.config.problem_type == HEAD.problem_type
    assert model.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert model.config.label2id == {"x": 0, "y": 1, "z": 2}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_changes_no_logit(architecture, tokenizer) -> None:
    model = small(architecture, tokenizer)
    ids = torch.randint(4, len(tokenizer), (3, 7))
    alone = logits(model, ids)
    padded = torch.nn.functional.pad(ids, (0, 5), value=tokenizer.pad_token_id)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 5))
    torch.testing.assert_close(logits(model, padded, mask), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_head_of_the_same_labels_is_kept_and_any_other_is_new(
    architecture, tokenizer, tmp_path
) -> None:
    model = small(architecture, tokenizer)
    model.save_pretrained(tmp_path)
    before = model.state_dict()
    head = set(classifier.head_weights(model))
    for names, seed in ((("x", "y", "z"), 1), (("p", "q", "r"), 1), (("p", "q"), 1)):
        config = classifier.existing_config(open_model(str(tmp_path)), {})
        config = ClassifierHead(HEAD.problem_type, names).describe(config, tokenizer.pad_token_id)
        again = [classifier.load_body(open_model(str(tmp_path)), config, seed) for _ in range(2)]
        for name, weight in again[0].state_dict().items():
            assert torch.equal(weight, again[1].state_dict()[name]), name
            if name not in head or names == HEAD.names:
                assert torch.equal(weight, before[name]), name
        weights = dict(again[0].named_parameters())
        last = [name for name in weights if name in head and weights[name].ndim == 2][-1]
        if names != HEAD.names:
            assert weights[last].shape != before[last].shape or not torch.equal(
                weights[last], before[last]
            )
            assert 0 < weights[last].std() < 1


def test_a_language_model_gets_a_head_and_a_pooler(tokenizer, tmp_path) -> None:
    config = classifier.new_config(
        "bert", {"hidden_size": 32, "num_hidden_layers": 2}, tokenizer, LENGTH
    )
    masked = BertForMaskedLM(config)
    masked.save_pretrained(tmp_path)
    shape = HEAD.describe(classifier.existing_config(open_model(str(tmp_path)), {}), 0)
    model = classifier.load_body(open_model(str(tmp_path)), shape, seed=0)
    for name, weight in masked.bert.state_dict().items():
        assert torch.equal(model.bert.state_dict()[name], weight)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"missing .* bert\.encoder\.layer\.1\.output\.dense"):
        classifier.load_body(open_model(str(tmp_path)), shape, seed=0)


def test_a_finished_classifier_must_have_its_head(tokenizer, tmp_path) -> None:
    model = small("bert", tokenizer)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"classifier\.weight"):
        pretrained.load_model(open_model(str(tmp_path)), build.CLASSIFIER_MODEL)


def test_padding_is_a_token_that_exists(tokenizer) -> None:
    plain = tokenizers.train_bpe(TEXTS, 300)
    plain.pad_token, size = None, len(plain)
    classifier.set_padding(plain)
    assert plain.pad_token_id == plain.eos_token_id
    assert len(plain) == size
    plain.pad_token = plain.eos_token = plain.bos_token = plain.unk_token = None
    with pytest.raises(DataError, match="no token that could serve as padding"):
        classifier.set_padding(plain)


def test_of_a_pretrained_model_only_the_dropout_can_be_set(tokenizer, tmp_path) -> None:
    small("bert", tokenizer).save_pretrained(tmp_path)
    config = classifier.existing_config(open_model(str(tmp_path)), {"hidden_dropout_prob": 0.3})
    assert config.hidden_dropout_prob == 0.3
    for name in ("hidden_size", "classifier_drop"):
        with pytest.raises(ConfigError, match="only the dropout") as caught:
            classifier.existing_config(open_model(str(tmp_path)), {name: 64})
        assert "hidden_dropout_prob" in caught.value.next


def test_an_architecture_without_such_a_head_is_named(tokenizer) -> None:
    with pytest.raises(ConfigError, match="no sequence classifier of type 'bret'") as caught:
        classifier.new_config("bret", {}, tokenizer, LENGTH)
    assert "bert" in caught.value.next


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_freezing_leaves_the_rest_to_be_trained(architecture, tokenizer) -> None:
    def trained(part: str) -> set[str]:
        model = small(architecture, tokenizer)
        classifier.freeze(model, part)
        return {name for name, weight in model.named_parameters() if weight.requires_grad}

    everything = trained("none")
    head = trained("body")
    assert head == set(classifier.head_weights(small(architecture, tokenizer)))
    kept = everything - trained("embeddings")
    assert kept
    assert all("embed" in name for name in kept)


def test_a_trained_tokenizer_frames_texts_and_pairs_and_comes_back_whole(
    tokenizer, tmp_path
) -> None:
    small("bert", tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    ids = again("the cat", "a dog")["input_ids"]
    assert again.decode(ids) == "[CLS]the cat[SEP]a dog[SEP]"
    for text in ("the cat", "未知 😀"):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert again.decode(again(text)["input_ids"], skip_special_tokens=True) == text
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert model.config.pad_token_id == again.pad_token_id


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_the_texts_of_a_pair_are_separated(kind: str, tmp_path: Path) -> None:
    plain = tokenizers.train_bpe(TEXTS, 300, kind)
    assert plain("ab", "c")["input_ids"] == [*plain("ab")["input_ids"], *plain("c")["input_ids"]]
    single = plain("the cat")["input_ids"]
    assert classifier.separate_pairs(plain) == "<|endoftext|>"
    kept = tokenizer_saving.savable_tokenizer(plain, AutoConfig.for_model(kind))
    kept.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    for each in (kept, AutoTokenizer.from_pretrained(tmp_path)):
        a, b = each("ab")["input_ids"], each("c")["input_ids"]
        assert each("ab", "c")["input_ids"] == [*a, each.eos_token_id, *b]
        assert each("the cat")["input_ids"] == single
    assert classifier.separate_pairs(kept) is None


def test_a_tokenizer_that_separates_pairs_is_left_alone(tokenizer) -> None:
    before = tokenizer.backend_tokenizer.to_str()
    assert classifier.separate_pairs(tokenizer) is None
    assert tokenizer.backend_tokenizer.to_str() == before
