"""Low-rank updates: what they train, how they are saved, and that merging changes nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from llmkit.config.schema import LoraConfig
from llmkit.errors import ConfigError, LlmkitError
from llmkit.models import build, classifier, lora
from llmkit.models import tokenizer as tokenizers
from llmkit.models.classifier import ClassifierHead
from llmkit.training.final_model import save_model
from tests.training.conftest import NoTokenizer

pytest.importorskip("peft")

TOKENIZER = tokenizers.train_bpe_with_frame(["the cat sat on the mat"] * 20, 300)
BATCH = {
    "input_ids": torch.randint(4, len(TOKENIZER), (2, 7), generator=torch.manual_seed(0)),
    "attention_mask": torch.ones(2, 7, dtype=torch.int64),
}


def small(architecture: str, seed: int = 0):
    shape = {"hidden_size": 32, "num_hidden_layers": 2}
    config = classifier.new_config(architecture, shape, TOKENIZER, 12)
    head = ClassifierHead("single_label_classification", ("x", "y"))
    return build.classifier(head.describe(config, TOKENIZER.pad_token_id), seed)


def attached(architecture: str, moved: bool = True, **settings):
    model = small(architecture)
    lora.attach(model, LoraConfig(r=4, **settings), 0, set(classifier.head_weights(model)))
    if moved:
        torch.manual_seed(1)
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.2)
    return model


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "deberta-v2"])
def test_updates_begin_at_zero_and_train_themselves_and_the_head_alone(architecture) -> None:
    model = attached(architecture, moved=False)
    plain = small(architecture)
    with torch.no_grad():
        expected = plain.eval()(**BATCH).logits
        assert torch.equal(model.eval()(**BATCH).logits, expected)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    head = set(classifier.head_weights(plain))
    assert head < trained
    assert all(".lora_" in name for name in trained - head)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "deberta-v2"])
def test_the_saved_model_is_plain_and_gives_the_same_logits(architecture, tmp_path) -> None:
    model = attached(architecture)
    save_model(model, NoTokenizer(), tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(plain) is type(small(architecture))
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval()(**BATCH).logits, plain(**BATCH).logits, rtol=1e-4, atol=1e-5
        )
    lora.check_merge(model, plain, BATCH)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_updates_come_back_to_the_bit(architecture, tmp_path) -> None:
    model = attached(architecture)
    save_model(model, NoTokenizer(), tmp_path)
    again = attached(architecture, moved=False)
    lora.restore_lora(again, tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_another_model_below_the_updates_is_refused(tmp_path) -> None:
    save_model(attached("bert"), NoTokenizer(), tmp_path)
    other = small("bert", seed=5)
    lora.attach(other, LoraConfig(r=4), 0, set(classifier.head_weights(other)))
    with pytest.raises(ConfigError, match="is not the one that the run started from"):
        lora.restore_lora(other, tmp_path)
    wider = small("bert")
    lora.attach(wider, LoraConfig(r=8), 0, set(classifier.head_weights(wider)))
    with pytest.raises(ConfigError, match="is not the one"):
        lora.restore_lora(wider, tmp_path)


def test_a_merge_that_changes_the_logits_is_reported(tmp_path) -> None:
    model = attached("bert")
    save_model(model, NoTokenizer(), tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.nn.init.normal_(plain.bert.encoder.layer[0].attention.self.query.weight)
    with pytest.raises(LlmkitError, match="differ by"):
        lora.check_merge(model, plain, BATCH)


def test_only_the_layers_that_are_named_get_updates() -> None:
    model = attached("bert", target_modules=("query", "value"))
    names = {name for name, weight in model.named_parameters() if ".lora_" in name}
    assert {name.split(".")[-4] for name in names} == {"query", "value"}
    with pytest.raises(ConfigError, match="no linear layer named 'q_proj'") as caught:
        attached("bert", target_modules=("q_proj",))
    assert "query" in caught.value.next


def test_the_scale_is_alpha_over_rank() -> None:
    scaling = [
        next(m for m in attached("bert", **s).modules() if hasattr(m, "lora_A")).scaling["default"]
        for s in ({}, {"alpha": 2.0})
    ]
    assert scaling == [2.0, 0.5]


@pytest.mark.parametrize(
    ("architecture", "tied"), [("llama", True), ("llama", False), ("gpt2", True)]
)
def test_a_causal_models_output_layer_stays_as_it_is(architecture, tied, tmp_path) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "tie_word_embeddings": tied}
    plain = build.causal_model(build.model_config(architecture, shape, 300, 16, {}), seed=0)
    model = build.causal_model(plain.config, seed=0)
    lora.attach(model, LoraConfig(r=4), seed=0)
    trained = {name: w for name, w in model.named_parameters() if w.requires_grad}
    assert trained
    assert all(".lora_" in name and "lm_head" not in name for name in trained)
    torch.manual_seed(1)
    for weight in trained.values():
        torch.nn.init.normal_(weight, std=0.2)
    save_model(model, NoTokenizer(), tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = {"input_ids": BATCH["input_ids"]}
    lora.check_merge(model, merged, {**ids, "targets": ids["input_ids"]})
    with torch.no_grad():
        assert not torch.allclose(plain.eval()(**ids).logits, merged(**ids).logits, atol=1e-3)
        torch.testing.assert_close(
            model.eval()(**ids).logits, merged(**ids).logits, rtol=1e-4, atol=1e-5
        )
    again = build.causal_model(plain.config, seed=0)
    lora.attach(again, LoraConfig(r=4), seed=0)
    lora.restore_lora(again, tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
