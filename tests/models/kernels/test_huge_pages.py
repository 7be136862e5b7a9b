"""Weights in huge pages are the same weights, in memory that the system may give in huge pages."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from llmkit.models.kernels import huge_pages, int8, layer_parts
from tests.training.conftest import tiny_model


def flags_of(addresses: list[int]) -> list[set[str]]:
    """The flags of the mapping of each address (VmFlags in proc(5))."""
    mappings: list[tuple[int, int, set[str]]] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            bounds = int(found[1], 16), int(found[2], 16)
        elif line.startswith("VmFlags:"):
            mappings.append((*bounds, set(line.split()[1:])))
    return [next(f for a, b, f in mappings if a <= place < b) for place in addresses]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("kind", ["fp32", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_model_in_huge_pages_computes_the_same(
    architecture: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "HUGE_PAGE", 1)
    model = layer_parts.store_by_output(tiny_model(architecture).eval())
    if kind == "int8":
        model = int8.quantize(model)
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        ties = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        before = {name: each.clone() for name, each in model.state_dict().items()}
        strides = {name: each.stride() for name, each in model.state_dict().items()}
        model = huge_pages.in_huge_pages(model)
        assert torch.equal(model(ids).logits, expected)
    after = model.state_dict()
    assert all(torch.equal(after[name], each) for name, each in before.items())
    assert {name: each.stride() for name, each in after.items()} == strides
    same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert same == ties
    assert all("hg" in flags for flags in flags_of([each.data_ptr() for each in after.values()]))


def test_a_model_that_does_not_fit_twice_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    places = [each.data_ptr() for each in model.parameters()]
    monkeypatch.setattr(huge_pages, "HUGE_PAGE", 1)
    needed = sum(each.nbytes for each in model.parameters())

    class Memory:
        available = needed // 2

    monkeypatch.setattr(huge_pages.psutil, "virtual_memory", Memory)
    huge_pages.in_huge_pages(model)
    assert [each.data_ptr() for each in model.parameters()] == places
