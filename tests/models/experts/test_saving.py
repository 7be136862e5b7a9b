"""A merged model is written in parts: as a whole one would be, without the memory for it."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmkit.models import pretrained
from llmkit.models.experts import merge, saving, twins
from llmkit.models.experts.record import read_experts, write_experts
from llmkit.models.experts.sources import ExpertSource, Family
from tests.models.experts.families import branches, built, dense, sources

mixture = partial(merge.mixture, shared="frequency", routers="fit", top_k=2, seed=0)
UNTIED = {"tie_word_embeddings": False}


@pytest.mark.parametrize(
    ("way", "kind", "settings"),
    [
        *((mixture, kind, {}) for kind in twins.TWINS),
        (mixture, "qwen3", UNTIED),
        *((merge.average, kind, {}) for kind in ("qwen3", "gpt2", "gpt_neox")),
        (merge.average, "gpt2", UNTIED),
    ],
)
def test_the_files_are_those_of_plain_transformers(way, kind, settings, tmp_path) -> None:
    given = sources(branches(kind, **settings))
    saving.save_merged(way(given), tmp_path / "parts")
    built(way(given)).save_pretrained(tmp_path / "whole")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_a_large_model_has_the_shards_of_plain_transformers(tmp_path: Path) -> None:
    given = sources(branches("llama"))
    saving.save_merged(merge.average(given), tmp_path / "parts", "20KB")
    built(merge.average(given)).save_pretrained(tmp_path / "whole", max_shard_size="20KB")
    assert len(files(tmp_path / "whole")) > 5
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_plain_transformers_reads_a_mixture_in_shards(tmp_path: Path) -> None:
    given = sources(branches("qwen3"))
    saving.save_merged(mixture(given), tmp_path, "20KB")
    assert len(files(tmp_path)) > 5
    found = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    expected = built(mixture(given)).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_one_expert_alone_is_written_as_it_was(tmp_path: Path) -> None:
    model = branches("llama", 1)[0]
    model.save_pretrained(tmp_path / "branch")
    saving.save_merged(merge.dense_expert(*sources([model])), tmp_path / "alone")
    assert files(tmp_path / "alone") == files(tmp_path / "branch")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[ExpertSource], int]:
    """Six experts on disk, and the bytes that one adds to a mixture: those of its networks and of
    its statistics."""
    members = []
    for number, name in enumerate("abcdef"):
        place = tmp_path_factory.mktemp(name)
        model = dense("qwen3", number, hidden_size=256, num_hidden_layers=12)
        (source,) = sources([model], name)
        model.save_pretrained(place)
        write_experts(place, source.record)
        members.append((pretrained.open_model(str(place)), read_experts(place)))
    family = Family(members, list("abcdef"))
    networks = (w.nbytes for n, w in model.state_dict().items() if twins.is_feed_forward(n))
    known = source.expert.statistics.tensors().values()
    return family.sources(), sum(networks) + sum(tensor.nbytes for tensor in known)


def peak(action: Callable[[], object]) -> int:
    """The bytes by which an action raises the peak of the memory of this process."""

    def read(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found
        return 1024 * int(found[1])

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = read("VmRSS")
    action()
    return read("VmHWM") - before


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
@pytest.mark.slow
@pytest.mark.parametrize(("way", "share"), [(mixture, 0.5), (merge.average, 0.1)])
def test_memory_does_not_grow_with_the_experts_that_are_merged(
    way, share, experts, tmp_path: Path
) -> None:
    given, size = experts

    def used(count: int, name: str) -> int:
        return peak(lambda: saving.save_merged(way(given[:count]), tmp_path / name))

    used(2, "first")  # what the first call loads is not counted
    few, many = used(2, "few"), used(6, "many")
    print(f"{few / size:.2f} and {many / size:.2f} experts")
    # Four more experts: a mixture that is held as a whole takes all their bytes.
    assert many - few < share * 4 * size
