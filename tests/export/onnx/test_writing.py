"""An ONNX model has plain names for inputs, outputs and axes, and states its labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from llmkit.errors import ConfigError
from llmkit.export.onnx.forms import OnnxForm
from llmkit.export.onnx.writing import write_onnx

from .conftest import FACTS, NAMES, Written


def axes(values: Any) -> dict[str, list[Any]]:
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in values
    }


def test_axes_have_plain_names(labels: Written, texts: Written) -> None:
    graph = onnx.load(labels.path).graph
    plain = ["batch", "sequence"]
    assert axes(graph.input) == dict.fromkeys(NAMES, plain)
    assert axes(graph.output) == {"logits": ["batch", 3]}
    graph = onnx.load(texts.path).graph
    found = axes(graph.input)
    assert found["input_ids"] == found["position_ids"] == ["batch", "sequence"]
    assert found["attention_mask"] == ["batch", "past + sequence"]
    assert found["past_key_values.1.value"] == ["batch", 2, "past", 8]
    assert axes(graph.output)["logits"] == ["batch", "sequence", 300]
    assert axes(graph.output)["present.0.key"] == ["batch", 2, "past + sequence", 8]


def test_facts_are_metadata(labels: Written) -> None:
    found = {each.key: json.loads(each.value) for each in onnx.load(labels.path).metadata_props}
    assert found == FACTS


def test_nothing_is_printed(labels: Written, capfd: pytest.CaptureFixture[str]) -> None:
    write_onnx(labels.form, labels.path.with_name("again.onnx"), {})
    assert capfd.readouterr().out == ""


class Unexportable(nn.Module):
    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor]:
        (ids,) = given
        return (ids + 1 if ids.sum() > 2 else ids[:1],)


def test_a_model_that_torch_cannot_trace_is_refused_in_a_sentence(tmp_path: Path) -> None:
    form = OnnxForm(
        Unexportable(), {"ids": ("batch",)}, {"found": ("batch",)}, (torch.ones(3).long(),)
    )
    with pytest.raises(ConfigError, match="torch cannot export this model to ONNX") as fault:
        write_onnx(form, tmp_path / "model.onnx", {})
    assert "\n" not in fault.value.what
