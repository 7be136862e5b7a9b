"""A regression learns its labels in whatever unit they come."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from llmkit.config.schema import TrainConfig
from llmkit.evaluation.labels import label_metrics
from llmkit.inference.labels import classify
from llmkit.models import build, classifier
from llmkit.models import tokenizer as tokenizers
from llmkit.models.classifier import ClassifierHead
from llmkit.models.pretrained import open_model
from llmkit.training.optimizer import NamedOptimizer
from llmkit.training.tasks.labels.classification_loss import ClassificationLoss

LABELS = np.linspace(-1, 2, 24, dtype=np.float32)
BATCH = {
    "input_ids": torch.arange(24 * 6).reshape(24, 6) % 50,
    "attention_mask": torch.ones(24, 6, dtype=torch.int64),
}


def made() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=1, problem_type="regression",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def trained(model: BertForSequenceClassification, labels: np.ndarray, steps: int) -> torch.Tensor:
    """What the model says after some steps on these labels."""
    classifier.fit_number_head(model, labels, is_new=True)
    task = ClassificationLoss(
        "regression", 1, label_metrics.figures_from("regression"), unit=classifier.head_unit(model)
    )
    settings = TrainConfig(weight_decay=0.1, adam_beta2=0.999, head_scale=2.0)
    optimizer = NamedOptimizer(model, "adamw", settings)
    model.train()
    for _ in range(steps):
        sums = task.sums(model, {**BATCH, "labels": torch.from_numpy(labels)})
        (sums["objective"] / len(labels)).backward()
        optimizer.step(3e-3)
        optimizer.zero_grad()
    with torch.no_grad():
        return model(**BATCH).logits[:, 0].double()


@pytest.mark.parametrize(("scale", "offset"), [(1000.0, 0.0), (137.5, 2000.0), (1e-3, 0.5)])
def test_another_unit_and_origin_of_the_labels_give_the_same_predictions_in_that_unit(
    scale, offset
) -> None:
    model = made()
    one = trained(deepcopy(model), LABELS, steps=8)
    other = trained(model, (LABELS.astype(np.float64) * scale + offset).astype(np.float32), steps=8)
    assert torch.allclose((other - offset) / scale, one, rtol=0, atol=2e-3 + 1e-6 * offset / scale)


def test_a_new_head_begins_at_the_mean_of_the_labels_and_its_unit_is_their_spread() -> None:
    model = made()
    labels = np.array([100.0, 300.0], dtype=np.float32)
    with torch.no_grad():
        model.classifier.bias.zero_()
        model.classifier.weight.zero_()
    classifier.fit_number_head(model, labels, is_new=True)
    assert classifier.head_unit(model) == 100.0
    assert classifier.head_units(model) == {"classifier.weight": 100.0, "classifier.bias": 100.0}
    assert torch.allclose(model(**BATCH).logits, torch.tensor(200.0))


def test_the_head_of_a_regression_keeps_its_digits_in_bf16() -> None:
    model = made()
    classifier.fit_number_head(model, np.array([2000.0, 2001.0], dtype=np.float32), is_new=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(**BATCH).logits.dtype == torch.float32


@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("outputs", [("price",), ("price", "weight")])
def test_a_finished_regression_keeps_its_digits_in_bf16(tmp_path, architecture, outputs) -> None:
    texts = [f"{'so ' * n}good" for n in range(8)]
    tokenizer = tokenizers.train_bpe_with_frame(texts, 300, architecture)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1}
    config = classifier.new_config(architecture, sizes, tokenizer, 16)
    ClassifierHead("regression", outputs).describe(config, tokenizer.pad_token_id)
    model = build.classifier(config, seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.2)
        if (bias := classifier.to_number_head(model).bias) is not None:
            bias.fill_(612.3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def said(precision: str) -> np.ndarray:
        found = classify.open_classifier(open_model(str(tmp_path)), torch.device("cpu"), precision)
        return found.outputs([(text,) for text in texts])

    exact, quick = said("fp32"), said("bf16")
    assert exact.std(axis=0).min() > 0.01
    assert np.abs(quick - exact).max() < 0.05  # near 612 the numbers of bf16 are 4 apart
    in_bf16 = torch.from_numpy(quick).bfloat16().float().numpy()
    assert (quick != in_bf16).all()


def test_labels_that_are_all_the_same_have_the_unit_one() -> None:
    model = made()
    classifier.fit_number_head(model, np.array([3.0, 3.0], dtype=np.float32), is_new=True)
    assert classifier.head_unit(model) == 1.0
