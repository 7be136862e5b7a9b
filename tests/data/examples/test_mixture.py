"""Domains laid end to end give the batches that each gives alone."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from llmkit.config.schema import Config
from llmkit.data.examples.blocks import UNSCORED, Blocks, MaskedBlocks, Vocabulary
from llmkit.data.examples.mixture import Mixture
from llmkit.data.readers.files import Sources
from llmkit.data.text.domains import keys_by_domain, weights
from llmkit.data.text.prepare import Prepared, data_report, prepare_domains
from llmkit.data.text.token_file import TokenFile, joined
from llmkit.errors import ConfigError, DataError, InputNotFound
from llmkit.progress import Watch


def config(domains: dict[str, Any], **data: Any) -> Config:
    return Config.model_validate({"data": {"mixture": domains, **data}})


@pytest.fixture
def files(tmp_path: Path) -> dict[str, dict[str, Any]]:
    (tmp_path / "words.txt").write_text("".join(f"some words, line {i}\n" for i in range(300)))
    (tmp_path / "poems.txt").write_text("一首诗\n" * 40)
    return {name: {"files": str(tmp_path / f"{name}.txt")} for name in ("words", "poems")}


def prepare(
    config: Config, watch: Watch, tokenizer: PreTrainedTokenizerFast | None = None
) -> dict[str, Prepared]:
    return prepare_domains(config, Sources(config), tokenizer, watch, lambda _: None)


@pytest.fixture
def prepared(files, watch: Watch) -> dict[str, Prepared]:
    return prepare(config(files, document="line"), watch)


def test_a_domain_is_read_as_it_would_be_alone(files, prepared, watch) -> None:
    assert list(prepared) == ["words", "poems"]
    for name, domain in prepared.items():
        alone = Config.model_validate({"data": {"train_files": files[name]["files"],
                                                "document": "line"}})  # fmt: skip
        expected = prepare(alone, watch, domain.tokenizer)[""]
        assert expected.train.fingerprint == domain.train.fingerprint
        assert expected.validation
        assert domain.validation
        assert expected.validation.fingerprint == domain.validation.fingerprint


def test_one_tokenizer_learns_from_all_domains_that_are_trained_on(files, prepared, watch) -> None:
    assert prepared["words"].tokenizer is prepared["poems"].tokenizer
    words, poem = (prepared["words"].tokenizer(text)["input_ids"] for text in (" words", "一首诗"))
    assert len(words) == len(poem) == 1
    files["words"]["weight"], files["poems"]["weight"] = 1, 0
    settings = config(files, document="line")
    measured = prepare(settings, watch)
    assert len(measured["words"].tokenizer("一首诗")["input_ids"]) == 9


def test_a_batch_is_that_of_the_domains(prepared) -> None:
    blocks = {name: Blocks(domain.train, 16) for name, domain in prepared.items()}
    words, poems = blocks.values()
    mixture, n = Mixture(blocks, tells_domain=True), len(words)
    assert len(mixture) == n + len(poems)
    rows = np.array([n + 1, 0, -1, 3, n, n - 1])
    batch = mixture.batch(rows)
    assert mixture.count(rows) == words.count([0, 3, n - 1]) + poems.count([0, 1])
    own = {0: poems.batch([1]), 1: words.batch([0]), 3: words.batch([3]), 4: poems.batch([0]),
           5: words.batch([n - 1])}  # fmt: skip
    for place, alone in own.items():
        assert torch.equal(batch["input_ids"][place], alone["input_ids"][0])
        assert torch.equal(batch["targets"][place], alone["targets"][0])
        positions = alone.get("position_ids", torch.arange(16)[None])
        assert torch.equal(batch["position_ids"][place], positions[0])
        assert batch["domain"][place] == int(place in (0, 4))
    assert (batch["targets"][2] == UNSCORED).all()


def test_the_domains_trained_on_represent_a_mixture(prepared) -> None:
    blocks = {name: Blocks(domain.train, 16) for name, domain in prepared.items()}
    some = Mixture(blocks, trained_on=("poems",)).representative
    assert dict(some.domains) == {"poems": blocks["poems"]}
    for seen in ((), ("another",)):  # without held-out text of what is trained on
        assert Mixture(blocks, trained_on=seen).representative.domains == blocks


def test_rows_that_count_occurrences_are_those_of_the_domains(prepared) -> None:
    n_ids = len(prepared["words"].tokenizer)
    special = np.arange(n_ids) < 1
    vocabulary = Vocabulary(mask_id=n_ids - 1, pad_id=0, special=special)
    blocks = {name: MaskedBlocks(domain.train, 16, name == "words", 0.3, vocabulary, "seed")
              for name, domain in prepared.items()}  # fmt: skip
    words, poems = blocks.values()
    mixture = Mixture(blocks, occurrences=True)
    n, epochs = len(mixture), (0, 3)
    rows = [epoch * n + row for epoch in epochs for row in (1, len(words), -1 - epoch * n)]
    batch = mixture.batch(rows)
    for place, epoch in zip((0, 3), epochs, strict=True):
        own = words.batch([epoch * len(words) + 1])
        other = poems.batch([epoch * len(poems)])
        for name in ("input_ids", "places", "targets"):
            assert torch.equal(batch[name][place], own[name][0])
            assert torch.equal(batch[name][place + 1], other[name][0])
        assert torch.equal(batch["documents"][place], own["documents"][0])
        inside = other.get("attention_mask", torch.ones(1, 16, dtype=torch.int64))
        assert torch.equal(batch["documents"][place + 1], inside[0])
    assert not torch.equal(batch["targets"][0], batch["targets"][3])
    assert mixture.count(rows) == int((batch["targets"] != UNSCORED).sum())


@pytest.mark.parametrize("opening", [None, 1])
def test_streams_are_joined_as_if_their_documents_were_in_one(prepared, opening) -> None:
    files = [domain.train for domain in prepared.values()]
    if opening is not None:  # two ids: an opening one before each document
        files = [with_opening(file, opening) for file in files]
    whole, begins = joined(files)
    assert whole.ids[whole.starts].tolist() == [files[0].opening] * len(whole.starts)
    assert len(whole.starts) == sum(len(file.starts) for file in files)
    for file, begin in zip(files, begins, strict=True):
        assert whole.ids[begin : begin + len(file.ids)].tolist() == file.ids.tolist()
        assert set(file.starts + begin) <= set(whole.starts)
    assert len(whole.ids) == sum(len(f.ids) for f in files) - (opening is None)


def with_opening(file: TokenFile, opening: int) -> TokenFile:
    """The same documents with an opening id of their own."""
    bounds = [*file.starts.tolist(), len(file.ids) - 1]
    parts = [[opening, *file.ids[a + 1 : b + 1]] for a, b in itertools.pairwise(bounds)]
    starts = np.cumsum([0, *map(len, parts)])[:-1]
    ids = np.concatenate(parts).astype(file.ids.dtype)
    return replace(file, ids=ids, starts=starts, opening=opening)


def test_counts_of_all_rows_are_those_of_the_domains(prepared) -> None:
    blocks = {name: Blocks(domain.train, 16) for name, domain in prepared.items()}
    mixture = Mixture(blocks)
    assert mixture.count(mixture.longest_first()) == sum(
        b.count(range(len(b))) for b in blocks.values()
    )
    assert mixture.n_bytes == sum(b.n_bytes for b in blocks.values())
    assert "domain" not in mixture.batch([0])


def test_temperature_flattens_the_sizes() -> None:
    domains = config({"a": {"files": "a"}, "b": {"files": "b"}}).data.mixture
    sizes = {"a": 10_000, "b": 100}
    assert weights(domains, sizes, 1.0) == sizes
    assert weights(domains, sizes, 2.0) == {"a": 100, "b": 10}
    flat = weights(domains, sizes, 1e6)
    assert flat["a"] / flat["b"] == pytest.approx(1, abs=1e-4)


def test_weights_that_are_given_stay() -> None:
    domains = config({"a": {"files": "a", "weight": 3}, "b": {"files": "b", "weight": 0}})
    assert weights(domains.data.mixture, {"a": 1, "b": 10**6}, 1.0) == {"a": 3, "b": 0}


def test_a_domain_without_text_or_files_is_named(files, tmp_path, watch) -> None:
    (tmp_path / "blank.txt").write_text(" \n\n")
    blank = config({**files, "empty": {"files": str(tmp_path / "blank.txt")}}, document="line")
    with pytest.raises(DataError, match=r"data.mixture.empty.files holds no text"):
        prepare(blank, watch)
    missing = config({**files, "gone": {"files": str(tmp_path / "gone.txt")}})
    with pytest.raises(InputNotFound, match=r"data.mixture.gone.files: .*gone.txt does not exist"):
        prepare(missing, watch)
    with pytest.raises(InputNotFound, match=r"data.mixture.none.files is not given"):
        prepare(config({**files, "none": {}}), watch)


def test_a_domain_that_is_only_measured_needs_its_held_out_text_alone(files, watch) -> None:
    domains = {"words": {**files["words"], "weight": 1},
               "poems": {"validation_files": files["poems"]["files"], "weight": 0}}  # fmt: skip
    found = prepare(config(domains, document="line"), watch)
    assert found["poems"].validation
    assert len(found["poems"].validation.starts) == 40
    del domains["poems"]["validation_files"]
    domains["poems"]["files"] = files["poems"]["files"]
    with pytest.raises(ConfigError, match="poems would not be used"):
        keys_by_domain(config(domains, validation_fraction=0))


def test_beside_an_expert_domains_are_omitted_if_nothing_is_held_out(files) -> None:
    assert list(keys_by_domain(config(files, expert="words"))) == ["words", "poems"]
    only = config(files, expert="words", validation_fraction=0)
    assert list(keys_by_domain(only)) == ["words"]


def test_the_report_tells_of_every_domain(files, watch) -> None:
    settings = config(files, document="line")
    report = data_report(settings, Sources(settings), watch)
    assert {key: found["documents"] for key, found in report.items()} == {
        "mixture.words.files": 300,
        "mixture.poems.files": 40,
    }
