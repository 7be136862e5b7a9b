"""Write a model as ONNX, through torch.export."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch

from llmkit.errors import ConfigError
from llmkit.export.onnx.forms import Axes, OnnxForm

MODEL = "model.onnx"
"""The file of the model in its directory."""

_SYMBOL = re.compile(r"\bs\d+\b")


def write_onnx(form: OnnxForm, path: Path, facts: Mapping[str, Any]) -> None:
    """Writes the model to `path`, weights above 2 GB beside it; `facts` become metadata, as JSON.

    Raises ConfigError for a model that torch cannot trace.
    """
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                form.module,
                form.example,
                dynamo=True,
                input_names=list(form.inputs),
                output_names=list(form.outputs),
                dynamic_shapes=(tuple(form.dynamic),),
                verbose=False,
            )
            assert program is not None
            program.save(path)
    except (OSError, KeyboardInterrupt):
        raise
    except Exception as fault:  # torch raises its own errors, and those of the model's code
        reason = " ".join(str(fault).split())[:200]
        raise ConfigError(
            f"torch cannot export this model to ONNX: {type(fault).__name__}: {reason}",
            where="model.name_or_path",
            kept="nothing was written",
            next="use `--format safetensors`, or `--format gguf` for llama.cpp",
        ) from fault
    _name(path, form, facts)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what torch prints and logs while it exports off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name(path: Path, form: OnnxForm, facts: Mapping[str, Any]) -> None:
    """Gives the axes their names, which torch numbers, and adds the facts."""
    model = onnx.load(path, load_external_data=False)
    names: dict[str, str] = {}
    for value in model.graph.input:
        for axis, name in zip(_axes(value), form.inputs[value.name], strict=True):
            if name is not None:
                names[axis.dim_param] = name
    for value in model.graph.input:
        _set_names(value, form.inputs[value.name])
    for value in model.graph.output:
        _set_names(value, form.outputs[value.name])
    for value in model.graph.value_info:
        for axis in _axes(value):
            if axis.dim_param:
                axis.dim_param = _SYMBOL.sub(lambda m: names.get(m[0], m[0]), axis.dim_param)
    for key, fact in facts.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(fact, ensure_ascii=False)
    onnx.save(model, path)


def _axes(value: Any) -> Any:
    return value.type.tensor_type.shape.dim


def _set_names(value: Any, names: Axes) -> None:
    for axis, name in zip(_axes(value), names, strict=True):
        if name is not None:
            axis.dim_param = name
