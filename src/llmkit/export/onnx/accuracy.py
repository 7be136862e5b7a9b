"""The accuracy of a classifier before and after it was exported, on labelled rows."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.data.records.labels import MULTI, REGRESSION
from llmkit.evaluation.labels.classifiers import ClassifierEvaluation, encoded_targets
from llmkit.evaluation.labels.label_metrics import score_labels
from llmkit.export.onnx.checking import onnx_outputs
from llmkit.inference.labels.classify import THRESHOLD, AnyArray, Classifier, probabilities
from llmkit.models.pretrained import Pretrained
from llmkit.reporting.console import Console

_SHOWN = ("accuracy", "f1_macro", "mae", "pearson")


class OnnxModel:
    """An ONNX model where a classifier calls its model."""

    device = torch.device("cpu")

    def __init__(self, session: Any) -> None:
        self.session = session

    def __call__(self, **inputs: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.from_numpy(onnx_outputs(self.session, inputs)[0]))


def measure_accuracy(
    config: Config,
    sources: Sources,
    opened: Pretrained,
    classifier: Classifier,
    session: Any,
    console: Console,
) -> dict[str, Any]:
    """The metrics of the model and of the ONNX model on `data.test_files`, in the same batches."""
    table = ClassifierEvaluation().tables(config, sources, opened, console).test
    after = replace(classifier, model=cast(PreTrainedModel, OnnxModel(session)))
    outputs = {}
    for when, each in (("before", classifier), ("after", after)):
        with console.watch(f"measuring {when}", len(table)) as advance:
            outputs[when] = each.outputs(table.texts, advance)
    kind, names = table.labels.kind, table.labels.names
    found: dict[str, Any] = {"rows": len(table)}
    for when, values in outputs.items():
        scores = score_labels(kind, values, encoded_targets(table), names, config.seed)
        found[when] = {name: scores[name] for name in _SHOWN if name in scores}
    if kind != REGRESSION:
        same = _labels(kind, outputs["before"]) == _labels(kind, outputs["after"])
        found["same_label"] = float(same.all(1).mean())
    return found


def _labels(kind: str, outputs: AnyArray) -> AnyArray:
    """[rows, classes], the classes that are predicted, or [rows, 1], the class."""
    if kind == MULTI:
        return np.asarray(probabilities(MULTI, outputs) >= THRESHOLD)
    return np.asarray(outputs.argmax(1, keepdims=True))
