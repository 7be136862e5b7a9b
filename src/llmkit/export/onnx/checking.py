"""Compare an ONNX model with the model it was written from, on inputs of several shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.errors import LlmkitError
from llmkit.export.onnx.forms import POSITIONS, continuing_form, empty_past

OUTPUT_TOLERANCE = 1e-4
"""Largest difference of outputs, relative to the largest output, or 1."""

_LABELLED = ((1, 3), (1, 88), (7, 164), (32, 131), (3, 512))
"""Rows and tokens of the inputs of a classifier; tokens up to what the model reads."""

_CONTINUED = ((1, 0, 7), (1, 9, 1), (4, 30, 1), (3, 20, 6), (2, 0, 1))
"""Rows, tokens in the KV cache and new tokens of the inputs of a causal model."""


@dataclass(frozen=True)
class OnnxCase:
    """Inputs, and what the model makes of them."""

    inputs: dict[str, Tensor]
    logits: Tensor
    real: Tensor
    """bool, which of the logits are not those of padding."""

    def found(self, outputs: Sequence[NDArray[Any]]) -> Tensor:
        """The same logits from the outputs of an ONNX model."""
        if self.logits.ndim == outputs[0].ndim:
            return torch.from_numpy(outputs[0])
        return _positions([torch.from_numpy(each) for each in outputs], self.inputs)


def open_onnx(path: Path) -> Any:
    """A session of ONNX Runtime on as many threads as torch uses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx_outputs(session: Any, inputs: dict[str, Tensor]) -> list[NDArray[Any]]:
    """The outputs of an ONNX model; torch has dropped the inputs that it does not read."""
    names = onnx_inputs(session)
    found: list[NDArray[Any]] = session.run(None, {name: inputs[name].numpy() for name in names})
    return found


def onnx_inputs(session: Any) -> list[str]:
    """The names of the inputs of an ONNX model."""
    return [each.name for each in session.get_inputs()]


@torch.no_grad()
def labelling_cases(
    model: PreTrainedModel, names: Sequence[str], longest: int, pad_id: int
) -> Iterator[OnnxCase]:
    """Random ids, padded on the right."""
    chance = torch.Generator().manual_seed(0)
    size = int(model.config.get_text_config().vocab_size)
    for rows, columns in _LABELLED:
        columns = min(columns, longest)
        lengths = torch.randint(1, columns + 1, (rows,), generator=chance)
        lengths[0] = columns
        real = torch.arange(columns) < lengths[:, None]
        ids = torch.randint(0, size, (rows, columns), generator=chance)
        ids[ids == pad_id] = (pad_id + 1) % size
        given = {
            "input_ids": torch.where(real, ids, pad_id),
            "attention_mask": real.long(),
            "token_type_ids": torch.zeros(rows, columns, dtype=torch.long),
        }
        inputs = {name: given[name] for name in names}
        made = model(**inputs)
        if "logits" in made:
            logits, is_real = made.logits, real if made.logits.ndim == 3 else real.any(1)
        else:
            logits, is_real = _positions([made[name] for name in POSITIONS], inputs), real.any(1)
        yield OnnxCase(inputs, logits, is_real)


def _positions(outputs: Sequence[Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
    """The logits [rows, 2, tokens] of the first and of the last token, where padding has those of
    the least likely token."""
    real = inputs["attention_mask"].bool()[:, None]
    stacked = torch.stack(list(outputs), 1)
    lowest = stacked.masked_fill(~real, torch.inf).amin(-1, keepdim=True)
    return torch.where(real, stacked, lowest)


@torch.no_grad()
def continuing_cases(model: PreTrainedModel) -> Iterator[OnnxCase]:
    """Random ids, some of them in the KV cache, some rows padded on the left."""
    chance, form = torch.Generator().manual_seed(0), continuing_form(model)
    size, longest = int(model.config.vocab_size), int(model.config.max_position_embeddings)
    for rows, known, new in _CONTINUED:
        known = min(known, longest - new)
        ids = torch.randint(0, size, (rows, known + new), generator=chance)
        starts = torch.arange(rows) % 3 if known > 2 else torch.zeros(rows).long()
        mask = (torch.arange(known + new) >= starts[:, None]).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        past: Sequence[Tensor] = empty_past(model, rows)
        if known:
            first = (ids[:, :known], mask[:, :known], positions[:, :known], *past)
            past = form.module(*first)[1:]
        values = (ids[:, known:], mask, positions[:, known:], *past)
        whole = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        yield OnnxCase(
            dict(zip(form.inputs, values, strict=True)),
            whole[:, known:],
            mask[:, known:].bool(),
        )


def compare_cases(session: Any, cases: Sequence[OnnxCase]) -> dict[str, Any]:
    """The largest difference of logits on the cases, relative to the largest logit or 1, and the
    share of rows, or tokens, whose largest logit is the same."""
    largest, same = 0.0, []
    for case in cases:
        found = case.found(onnx_outputs(session, case.inputs))[case.real]
        wanted = case.logits[case.real]
        distance = (found - wanted).abs().max() / wanted.abs().max().clamp(min=1)
        largest = max(largest, float(distance))
        same.append(found.argmax(-1) == wanted.argmax(-1))
    return {
        "shapes": len(cases),
        "largest_difference": largest,
        "same_largest_output": float(torch.cat(same).double().mean()),
    }


def check_cases(session: Any, cases: Sequence[OnnxCase], name: str) -> dict[str, Any]:
    """The same figures; raises LlmkitError if they are beyond the tolerance."""
    figures = compare_cases(session, cases)
    if not figures["largest_difference"] <= OUTPUT_TOLERANCE:
        raise LlmkitError(
            f"the outputs of the ONNX model differ from the model's by "
            f"{figures['largest_difference']:.2g}",
            where=name,
            kept="nothing: the directory was removed",
            next="report it with the architecture of the model",
        )
    return figures
