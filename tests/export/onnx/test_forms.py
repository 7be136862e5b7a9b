"""The function of tensors that is exported is the model, cache and padding included."""

from __future__ import annotations

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from llmkit.errors import ConfigError
from llmkit.export.onnx.forms import continuing_form, empty_past, labelling_form

from .conftest import NAMES, continuer, labeller


def test_a_continuing_model_gives_the_same_logits_in_any_steps() -> None:
    model = continuer()
    form = continuing_form(model)
    ids = torch.randint(1, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    past, steps = tuple(empty_past(model, 2)), []
    for first, last in ((0, 5), (5, 6), (6, 12)):
        positions = torch.arange(first, last).expand(2, -1)
        with torch.no_grad():
            logits, *past_now = form.module(
                ids[:, first:last], torch.ones(2, last).long(), positions, *past
            )
        past = tuple(past_now)
        steps.append(logits)
    with torch.no_grad():
        whole = model(input_ids=ids).logits
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)
    assert len(past) == len(form.outputs) - 1
    assert past[0].shape == (2, 2, 12, 8)


def test_names_and_axes_fit_the_tensors() -> None:
    form = continuing_form(continuer())
    assert len(form.inputs) == len(form.example)
    for axes, example in zip(form.inputs.values(), form.example, strict=True):
        assert len(axes) == example.ndim
    other = labelling_form(labeller(), NAMES, False)
    (logits,) = other.module(*other.example)
    assert logits.shape == (2, 3)
    assert list(other.inputs) == list(NAMES)


def test_a_model_without_keys_and_values_is_refused() -> None:
    small = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    with pytest.raises(ConfigError, match="layers without keys and values"):
        continuing_form(MambaForCausalLM(MambaConfig(**small)))
