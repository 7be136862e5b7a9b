"""From a model to a verified directory with its ONNX model, tokenizer and labels."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import PreTrainedModel

from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.errors import ConfigError
from llmkit.export.onnx import accuracy, checking
from llmkit.export.onnx.checking import OnnxCase
from llmkit.export.onnx.forms import OnnxForm, answering_form, continuing_form, labelling_form
from llmkit.export.onnx.writing import MODEL, write_onnx
from llmkit.export.source import ExportSource, check_finite
from llmkit.inference.labels import answer, classify
from llmkit.inference.labels.classify import Classifier
from llmkit.models import rope
from llmkit.models.classifier import head_of, longest_text
from llmkit.models.pretrained import ModelKind
from llmkit.reporting.console import Console
from llmkit.storage import atomic, outputs

_TASKS: dict[ModelKind, str] = {
    "classifier": "text-classification",
    "causal": "text-generation",
    "masked": "fill-mask",
    "tagger": "token-classification",
    "answerer": "question-answering",
}
"""What an ONNX model is for, in its metadata, as the hub calls it."""

_BYTES = {"f32": 4, "int8": 1}


def check_onnx(source: ExportSource, config: Config) -> dict[str, Any]:
    """Checks that the model can be exported, and that it has room on the disk."""
    opened = source.opened
    if opened.kind == "causal":
        opened.check_causal()
    if config.data.test_files and opened.kind != "classifier":
        raise ConfigError(
            "accuracy is measured of classifiers only",
            where="data.test_files",
            next="remove the labelled rows, or export a classifier",
        )
    outline = source.outline()
    if rope.depends_on_length(outline):
        raise ConfigError(
            "the positions of this model depend on the length of a text, which ONNX cannot express",
            where=f"{opened.name} (model.name_or_path)",
            next="use `--format safetensors`",
        )
    weights = sum(weight.numel() for weight in outline.parameters())
    # int8 is made from fp32, which is verified first
    size = 4 * weights + (weights if config.export.written_type == "int8" else 0)
    outputs.check_room(Path(str(config.export.output)), size)
    return {"bytes": _BYTES[config.export.written_type] * weights}


def export_onnx(
    source: ExportSource, config: Config, sources: Sources, console: Console
) -> dict[str, Any]:
    """Writes a directory, which appears once it is verified.

    Raises what `check_onnx` raises, WriteError where the disk does not take it, and LlmkitError if
    the ONNX model computes something else.
    """
    check_onnx(source, config)
    with console.loading_model():
        model, classifier = _loaded(source, console)
    found: dict[str, Any] = {}

    def fill(directory: Path) -> None:
        found.update(_written(directory, source, model, classifier, config, sources, console))

    output = Path(str(config.export.output))
    atomic.commit(output, fill, {"export": "onnx"})
    files = [path for path in output.iterdir() if path.name.startswith(MODEL)]
    return {"bytes": sum(path.stat().st_size for path in files), **found}


def _loaded(source: ExportSource, console: Console) -> tuple[PreTrainedModel, Classifier | None]:
    """The model, and as a classifier with its encoder if it is one."""
    if source.opened.kind != "classifier":
        return source.load(console.watch, console.warn), None
    classifier = classify.open_classifier(source.opened, torch.device("cpu"), "fp32")
    check_finite(classifier.model, source.opened.name)
    return classifier.model, classifier


def _written(
    directory: Path,
    source: ExportSource,
    model: PreTrainedModel,
    classifier: Classifier | None,
    config: Config,
    sources: Sources,
    console: Console,
) -> dict[str, Any]:
    """Writes and verifies what is exported; returns what was and was not verified."""
    form, cases = _form(source, model), _cases(source, model)
    path, is_int8 = directory / MODEL, config.export.written_type == "int8"
    with console.waiting("exporting through torch…"):
        write_onnx(form, path, _metadata(source))
    with console.waiting("comparing the outputs with the model…"):
        figures = checking.check_cases(checking.open_onnx(path), cases, path.name)
    verified: dict[str, Any] = {"fp32": figures}
    if is_int8:
        console.warn(
            "in int8 the outputs of a text depend slightly on the others of its batch: activations "
            "are rounded together"
        )
        with console.waiting("rounding the weights to int8…"):
            _round_to_int8(path)
        verified["int8"] = checking.compare_cases(checking.open_onnx(path), cases)
    if classifier is not None and config.data.test_files:
        session = checking.open_onnx(path)
        verified["accuracy"] = accuracy.measure_accuracy(
            config, sources, source.opened, classifier, session, console
        )
    inputs = checking.onnx_inputs(checking.open_onnx(path))
    if source.opened.kind != "causal":  # so that its output fits the model's inputs
        source.tokenizer.model_input_names = inputs
    source.tokenizer.save_pretrained(directory)
    model.config.save_pretrained(directory)
    return {
        "inputs": inputs,
        "outputs": list(form.outputs),
        "verified": verified,
        "not_verified": _not_verified(is_int8, classifier, "accuracy" in verified),
    }


def _form(source: ExportSource, model: PreTrainedModel) -> OnnxForm:
    if source.opened.kind == "causal":
        return continuing_form(model)
    names = _input_names(source, model)
    if source.opened.kind == "answerer":
        return answering_form(model, names)
    return labelling_form(model, names, source.opened.kind in ("masked", "tagger"))


def _cases(source: ExportSource, model: PreTrainedModel) -> list[OnnxCase]:
    if source.opened.kind == "causal":
        return list(checking.continuing_cases(model))
    longest = longest_text(model.config, source.tokenizer, source.opened.purpose)
    pad = source.tokenizer.pad_token_id or 0
    return list(checking.labelling_cases(model, _input_names(source, model), longest, pad))


def _input_names(source: ExportSource, model: PreTrainedModel) -> list[str]:
    """The inputs of a model that labels: those of its tokenizer that it takes."""
    taken = inspect.signature(model.forward).parameters
    names = ("input_ids", "attention_mask", "token_type_ids")
    return [name for name in names if name in taken and name in source.tokenizer.model_input_names]


def _metadata(source: ExportSource) -> dict[str, Any]:
    """What a program needs to know beside the tensors."""
    found: dict[str, Any] = {"task": _TASKS[source.opened.kind], "name": source.name}
    if source.opened.kind in ("classifier", "tagger"):
        head = head_of(source.config)
        found["labels"] = list(head.names)
    if source.opened.kind == "classifier":
        found["problem_type"] = head.problem_type
    if source.opened.kind == "answerer":
        longest, threshold = answer.limits_of(source.config)
        found[answer.LONGEST_ANSWER] = longest
        found[answer.THRESHOLD_OF_NONE] = threshold if np.isfinite(threshold) else None
    return found


def _round_to_int8(path: Path) -> None:
    """Replaces the model by one whose matrices have int8 weights, with a scale for each channel:
    with one scale for a whole matrix, far more labels change."""
    rounded = path.with_name(f"int8-{path.name}")
    quantize_dynamic(path, rounded, per_channel=True, weight_type=QuantType.QInt8)
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    rounded.rename(path)


def _not_verified(is_int8: bool, classifier: Classifier | None, measured: bool) -> list[str]:
    if not is_int8 or measured:
        return []
    if classifier is not None:
        return ["the accuracy in int8: give labelled rows with `--csv rows.csv`"]
    return ["how good int8 is: compare some results with those of `llmkit generate` or `predict`"]
