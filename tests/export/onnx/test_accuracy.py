"""The accuracy before and after is that of scikit-learn on the labels of both models."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.export.onnx.accuracy import measure_accuracy
from llmkit.export.onnx.checking import onnx_outputs
from llmkit.inference.labels import classify
from llmkit.models import pretrained
from llmkit.models import tokenizer as tokenizers
from llmkit.reporting.console import Console
from tests.jobs import write_table

from .conftest import NAMES, Written

LABELS = ("bad", "fine", "good")


def test_before_and_after_are_measured_on_the_same_rows(labels: Written, tmp_path: Path) -> None:
    chance = random.Random(0)
    rows = [(" ".join(chance.choices("abcdefgh", k=9)), chance.choice(LABELS)) for _ in range(60)]
    tokenizer = tokenizers.train_bpe_with_frame([text for text, _ in rows], 300)
    model = labels.model
    model.config.id2label = dict(enumerate(LABELS))
    model.config.problem_type = "single_label_classification"
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    table = write_table(tmp_path / "rows.csv", rows)
    config = Config().changed(data={"test_files": (str(table),)})
    opened = pretrained.open_model(str(tmp_path / "model"))
    classifier = classify.open_classifier(opened, torch.device("cpu"), "fp32")
    session = labels.session()
    found = measure_accuracy(
        config, Sources(config), opened, classifier, session, Console(quiet=True)
    )
    batch = tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")
    logits = onnx_outputs(session, {name: batch[name] for name in NAMES})[0]
    made = [LABELS[number] for number in np.argmax(logits, axis=1)]
    truth = [label for _, label in rows]
    assert found["rows"] == 60
    assert found["same_label"] == 1.0
    assert found["after"]["accuracy"] == pytest.approx(accuracy_score(truth, made))
    assert found["after"]["f1_macro"] == pytest.approx(f1_score(truth, made, average="macro"))
    assert found["before"] == found["after"]
