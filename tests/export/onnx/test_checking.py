"""The comparison covers padding and the KV cache, and finds a model that differs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from llmkit.errors import LlmkitError
from llmkit.export.onnx.checking import (
    OUTPUT_TOLERANCE,
    check_cases,
    compare_cases,
    continuing_cases,
    labelling_cases,
    onnx_outputs,
    open_onnx,
)
from llmkit.export.onnx.forms import answering_form, continuing_form, empty_past, labelling_form

from .conftest import NAMES, Written, continuer, labeller, written


def test_both_kinds_of_models_agree_on_five_shapes(labels: Written, texts: Written) -> None:
    first = list(labelling_cases(labels.model, NAMES, 96, 0))
    second = list(continuing_cases(texts.model))
    for model, cases in ((labels, first), (texts, second)):
        figures = check_cases(model.session(), cases, "it")
        assert figures["shapes"] == 5
        assert figures["largest_difference"] < OUTPUT_TOLERANCE
        assert figures["same_largest_output"] == 1.0
    assert {tuple(case.inputs["input_ids"].shape) for case in first} == {
        (1, 3), (1, 88), (7, 96), (32, 96), (3, 96),
    }  # fmt: skip
    assert any((case.inputs["attention_mask"] == 0).any() for case in first)
    assert any((case.inputs["attention_mask"] == 0).any() for case in second)
    assert any(case.inputs["past_key_values.0.key"].shape[2] == 0 for case in second)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 7), (11, 60)])
def test_other_shapes_agree_too(rows: int, columns: int, labels: Written) -> None:
    ids = torch.randint(1, 300, (rows, columns))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    given["token_type_ids"] = torch.zeros_like(ids)
    with torch.no_grad():
        wanted = labels.model(**given).logits.numpy()
    assert np.abs(onnx_outputs(labels.session(), given)[0] - wanted).max() < 1e-4


def test_greedy_text_with_the_cache_is_that_of_generate(texts: Written) -> None:
    ids = torch.tensor([[5, 17, 200, 41]])
    wanted = texts.model.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=None)
    session, past = texts.session(), [each.numpy() for each in empty_past(texts.model, 1)]
    text, new = ids.tolist()[0], ids
    for _ in range(40):
        known = past[0].shape[2]
        given = {
            "input_ids": new,
            "attention_mask": torch.ones(1, known + new.shape[1]).long(),
            "position_ids": torch.arange(known, known + new.shape[1])[None],
            **dict(zip(list(texts.form.inputs)[3:], map(torch.from_numpy, past), strict=True)),
        }
        logits, *past = onnx_outputs(session, given)
        text.append(int(logits[0, -1].argmax()))
        new = torch.tensor([[text[-1]]])
    assert text == wanted[0].tolist()


def test_a_model_that_differs_is_found(labels: Written, tmp_path: Path) -> None:
    model = onnx.load(labels.path)
    weight = next(each for each in model.graph.initializer if list(each.dims) in ([3, 32], [32, 3]))
    values = numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "changed.onnx")
    cases = list(labelling_cases(labels.model, NAMES, 96, 0))
    session = open_onnx(tmp_path / "changed.onnx")
    assert compare_cases(session, cases)["largest_difference"] > OUTPUT_TOLERANCE
    with pytest.raises(LlmkitError, match="differ from the model's by"):
        check_cases(session, cases, "it")


@pytest.mark.slow
def test_onnx_runtime_sends_nothing_and_keeps_no_identity(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ORT_")}
    environment |= dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), str(tmp_path))
    code = "import llmkit.export.onnx.checking, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "mistral", "mixtral", "olmo2", "qwen2", "qwen3",
                                  "qwen3_moe", "transformer"])  # fmt: skip
def test_causal_models_of_other_types_agree(kind: str, tmp_path: Path) -> None:
    settings = {
        "mixtral": {"num_local_experts": 4},
        "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        "mistral": {"sliding_window": 8},
    }.get(kind, {})
    found = written(tmp_path, continuer(kind, **settings), continuing_form)
    print(kind, check_cases(found.session(), list(continuing_cases(found.model)), kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["modernbert", "roberta", "electra", "llama", "qwen3",
                                  "transformer"])  # fmt: skip
def test_classifiers_of_other_types_agree(kind: str, tmp_path: Path) -> None:
    shared = {"num_key_value_heads": 2} if kind in ("llama", "qwen3", "transformer") else {}
    model = labeller(kind, pad_token_id=1, **shared)
    check_labeller(model, False, tmp_path)


def test_a_model_that_answers_questions_agrees_on_both_ends(tmp_path: Path) -> None:
    config = labeller().config
    config.num_labels = 2
    model = AutoModelForQuestionAnswering.from_config(config).eval()
    found = written(tmp_path, model, lambda each: answering_form(each, NAMES))
    cases = list(labelling_cases(model, NAMES, 90, 0))
    figures = check_cases(found.session(), cases, "it")
    assert (figures["shapes"], figures["same_largest_output"]) == (5, 1.0)
    for case in cases:
        made = model(**case.inputs)
        real = case.inputs["attention_mask"].bool()
        for place, logits in enumerate((made.start_logits, made.end_logits)):
            torch.testing.assert_close(case.logits[:, place][real], logits[real])
            likeliest = logits.masked_fill(~real, -9e9).argmax(1)
            assert torch.equal(likeliest, case.logits[:, place].argmax(1))
    with torch.no_grad():
        model.qa_outputs.bias[1] += 0.1
    cases = list(labelling_cases(model, NAMES, 90, 0))
    with pytest.raises(LlmkitError, match="differ from the model's by"):
        check_cases(found.session(), cases, "it")


@pytest.mark.slow
@pytest.mark.parametrize("auto", [AutoModelForTokenClassification, AutoModelForMaskedLM])
def test_taggers_and_masked_models_agree_on_each_token(auto: Any, tmp_path: Path) -> None:
    check_labeller(auto.from_config(labeller("roberta").config).eval(), True, tmp_path)


def check_labeller(model: PreTrainedModel, each_token: bool, tmp_path: Path) -> None:
    names, kind = NAMES[:2], type(model).__name__
    found = written(tmp_path, model, lambda each: labelling_form(each, names, each_token))
    cases = list(labelling_cases(model, names, 90, 1))
    print(kind, check_cases(found.session(), cases, kind))
