"""Perplexity against straightforward computations: one window at a time, float64 sums."""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from llmkit.config.load import load_config
from llmkit.data.readers.files import Sources
from llmkit.errors import ConfigError, DataError
from llmkit.evaluation import text
from llmkit.evaluation.windows import check_models
from llmkit.models.pretrained import compared

from .conftest import saved

SEPARATE = "evaluation.documents=separate"


@pytest.fixture
def measured(processes, watch, text_file):
    """Measures models on the text."""

    def measure(*names: Path, path: Path = text_file, keys: tuple[str, ...] = ()) -> Any:
        first, *others = map(str, names)
        config = load_config("evaluate", None, [
            f"model.name_or_path={first}", f"data.test_files={path}",
            f"evaluation.compare_with={json.dumps(others)}", *keys,
        ]).config  # fmt: skip
        models = compared(config)
        check_models(models, config.evaluation)
        found = text.measure_text(config, Sources(config), models, processes, watch, lambda _: None)
        return text.text_result(config, found)

    return measure


def texts_of(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["text"] for row in rows if row["text"].strip()]


def framed(model: Path, path: Path) -> list[list[int]]:
    """The ids of each document, with what opens and closes it."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    alone, end = tokenizer("")["input_ids"], tokenizer.eos_token_id
    opening = alone[0] if alone else end
    encode = tokenizer.backend_tokenizer.encode
    return [[opening, *encode(each, add_special_tokens=False).ids, end] for each in texts_of(path)]


@cache
def loaded(model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model).eval()


@torch.no_grad()
def plain_loop(model: Path, ids: list[int], window: int, stride: int) -> tuple[float, int]:
    """The summed nats and the number of scored tokens, as the transformers documentation has it."""
    network = loaded(model)
    nll, count, done, last = 0.0, 0, 0, len(ids) - 1
    for begin in range(0, last, stride):
        end = min(begin + window, last)
        logits = network(torch.tensor([ids[begin:end]])).logits[0].double()
        chosen = torch.tensor(ids[begin + 1 : end + 1])[done - begin :]
        nll -= logits.log_softmax(-1)[done - begin :].gather(1, chosen[:, None]).sum().item()
        count, done = count + len(chosen), end
        if end == last:
            break
    return nll, count


@pytest.mark.parametrize(("window", "stride"), [(32, 32), (20, 7), (16, 1)])
@pytest.mark.parametrize("kind", ["one_id", "two_ids"])
def test_documents_by_themselves_give_the_sums_of_a_plain_loop(
    request, measured, text_file, kind, window, stride
) -> None:
    model = request.getfixturevalue(kind)
    sums = [plain_loop(model, ids, window, stride) for ids in framed(model, text_file)[:8]]
    keys = (SEPARATE, f"evaluation.window={window}", f"evaluation.stride={stride}")
    found = measured(model, keys=(*keys, "evaluation.by_document=true"))
    for row, (nll, count) in zip(found["by_document"], sums, strict=False):
        assert row["nll"] == pytest.approx(nll, rel=1e-5)
        assert row["tokens"] == count


@pytest.mark.parametrize("stride", [32, 5])
def test_joined_documents_are_one_text(measured, one_id, text_file, stride) -> None:
    first, *others = framed(one_id, text_file)
    joined = first + [id for ids in others for id in ids[1:]]
    nll, count = plain_loop(one_id, joined, 32, stride)
    keys = ("evaluation.documents=joined", f"evaluation.stride={stride}")
    found = measured(one_id, keys=keys)
    assert found["nll"] == pytest.approx(nll, rel=1e-5)
    assert found["tokens"] == count
    assert found["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-5)


def test_a_stride_of_one_gives_each_token_its_whole_context(measured, one_id, tmp_path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("the cat sat on a mat and saw how far the little dog had run away 家 until")
    tokenizer = AutoTokenizer.from_pretrained(one_id)
    network = loaded(one_id)
    ids = [tokenizer.eos_token_id, *tokenizer(path.read_text())["input_ids"], 0]
    nll = 0.0
    for place in range(1, len(ids)):
        with torch.no_grad():
            seen = torch.tensor([ids[max(0, place - 12) : place]])
            nll -= network(seen).logits[0, -1].double().log_softmax(-1)[ids[place]].item()
    found = measured(one_id, path=path, keys=("evaluation.window=12", "evaluation.stride=1"))
    assert found["nll"] == pytest.approx(nll, rel=1e-5)


@pytest.mark.parametrize("documents", ["packed", "separate", "joined"])
def test_a_stride_of_the_whole_window_is_not_an_overlap(measured, two_ids, documents) -> None:
    keys = (f"evaluation.documents={documents}", "evaluation.window=24")
    assert (
        measured(two_ids, keys=(*keys, "evaluation.stride=24"))["nll"]
        == (measured(two_ids, keys=keys)["nll"])
    )


@pytest.mark.parametrize("tokens", [1, 50, 100_000])
def test_the_batch_changes_no_figure(measured, one_id, tokens) -> None:
    found = measured(one_id, keys=(f"evaluation.batch_tokens={tokens}",))
    assert found["nll"] == pytest.approx(measured(one_id)["nll"], rel=1e-6)


def test_the_opening_token_can_precede_each_window(measured, two_ids, text_file) -> None:
    network, nll = loaded(two_ids), 0.0
    for opening, *ids in framed(two_ids, text_file):
        for begin in range(0, len(ids), 9):
            targets = torch.tensor(ids[begin : begin + 9])
            before = ids[begin - 1 : begin] if begin else []
            seen = [opening, *before, *ids[begin : begin + len(targets) - 1]]
            with torch.no_grad():
                logits = network(torch.tensor([seen])).logits[0, -len(targets) :].double()
            nll -= logits.log_softmax(-1).gather(1, targets[:, None]).sum().item()
    found = measured(two_ids, keys=(SEPARATE, "evaluation.window=10", "evaluation.bos=window"))
    assert found["nll"] == pytest.approx(nll, rel=1e-5)


def test_bytes_and_characters_are_those_of_the_text(measured, one_id, text_file) -> None:
    found, texts = measured(one_id), texts_of(text_file)
    assert found["bytes"] == sum(len(each.encode()) for each in texts)
    assert found["characters"] == sum(map(len, texts))
    assert found["bits_per_byte"] == pytest.approx(found["nll"] / math.log(2) / found["bytes"])
    assert found["documents"] == len(texts)


def test_the_unigram_baseline_is_the_entropy_of_the_tokens(measured, one_id, text_file) -> None:
    counts = Counter(id for ids in framed(one_id, text_file) for id in ids[1:])
    total = counts.total()
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    assert measured(one_id)["baseline"]["perplexity"] == pytest.approx(math.exp(entropy))


def test_tables_add_up_to_the_whole(measured, one_id, text_file) -> None:
    keys = ("evaluation.by_document=true", "evaluation.domain_column=genre")
    found = measured(one_id, keys=keys)
    for table in ("by_document", "by_domain"):
        for name in ("nll", "tokens", "bytes"):
            assert sum(row[name] for row in found[table]) == pytest.approx(found[name])
    assert [row["domain"] for row in found["by_domain"]] == ["a", "b", "c"]
    assert sum(row["documents"] for row in found["by_domain"]) == 40
    genres = [json.loads(line) for line in text_file.read_text().splitlines()]
    expected = [row["genre"] for row in genres if row["text"].strip()]
    assert [row["domain"] for row in found["by_document"]] == expected


def test_models_with_different_tokenizers_are_compared_on_the_same_bytes(
    measured, one_id, two_ids
) -> None:
    found = measured(one_id, two_ids)
    one, other = found["models"]
    assert one["bytes"] == other["bytes"]
    assert one["tokens"] != other["tokens"]
    (row,) = found["comparisons"]
    difference = one["bits_per_byte"] - other["bits_per_byte"]
    assert row["bits_per_byte_difference"] == pytest.approx(difference)
    assert row["low"] < difference < row["high"]
    # Paired: both models find the same documents hard.
    widths = [each["interval"]["bits_per_byte"] for each in (one, other)]
    assert row["high"] - row["low"] < sum(high - low for low, high in widths)


def test_a_model_does_not_differ_from_itself(measured, one_id) -> None:
    (row,) = measured(one_id, one_id)["comparisons"]
    assert row["bits_per_byte_difference"] == row["low"] == row["high"] == 0
    assert row["better"] is None


def test_a_text_in_one_document_has_an_interval_over_blocks(measured, one_id, tmp_path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("the cat sat on a mat\n" * 600)
    found = measured(one_id, path=path)
    assert found["interval"]["over"].startswith("12 blocks")
    low, high = found["interval"]["bits_per_byte"]
    assert low <= found["bits_per_byte"] <= high


def lossy(directory: Path) -> Path:
    """A model whose tokenizer knows the letters a to e only."""
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(
        ["abc de"], trainers.BpeTrainer(special_tokens=["[UNK]", "[END]"], show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="[END]", bos_token="[END]"
    )
    return saved(directory, tokenizer, seed=5)


def test_bits_of_text_that_a_tokenizer_loses_are_not_given(measured, tmp_path) -> None:
    found = measured(lossy(tmp_path / "lossy"))
    assert found["perplexity"] > 1
    assert found["bits_per_byte"] is None
    assert found["interval"]["bits_per_byte"] is None


def test_a_tokenizer_that_loses_text_is_not_compared(measured, one_id, tmp_path) -> None:
    with pytest.raises(DataError, match=r"loses .*% of the letters"):
        measured(one_id, lossy(tmp_path / "lossy"))


def test_ids_outside_the_embedding_are_refused_before_weights(measured, one_id, tmp_path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in one_id.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"vocab_size": 200}))
    (broken / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(DataError, match=r"gives id \d+, the model has 200 embeddings"):
        measured(broken)


def test_non_finite_weights_give_no_figure(measured, one_id, tmp_path) -> None:
    broken = tmp_path / "nan"
    broken.mkdir()
    for file in one_id.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], torch.nan)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="NaN or infinite"):
        measured(broken)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("evaluation.window=33",), "33 tokens exceeds the 32-token context"),
        (("evaluation.window=8", "evaluation.stride=9"), "of 9 tokens would skip text"),
        (("evaluation.bos=window", "evaluation.stride=32"), "a window holds 31"),
    ],
)
def test_a_protocol_that_does_not_fit_is_refused(measured, one_id, keys, said) -> None:
    with pytest.raises(ConfigError, match=said):
        measured(one_id, keys=keys)


def test_causal_and_masked_models_are_not_compared(measured, one_id, bert) -> None:
    with pytest.raises(ConfigError, match=r"causal model and .* a masked one"):
        measured(one_id, bert)


def test_published_figures_come_out(measured, shared, tmp_path) -> None:
    """Five stories, each by itself after its start token; transformers gave these losses."""
    sample = (shared / "golden/cs336_bpe/tinystories_sample.txt").read_text()
    stories = [story.strip() for story in sample.split("<|endoftext|>") if story.strip()]
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    keys = (SEPARATE, "evaluation.score_end=false", "evaluation.by_document=true")
    found = measured(shared / "models/tinystories-656k", path=path, keys=keys)
    assert found["tokens"] == 848
    assert found["perplexity"] == pytest.approx(18.464, abs=5e-4)
    each = [(row["tokens"], round(row["nll"] / row["tokens"], 4)) for row in found["by_document"]]
    assert each == [(187, 3.2158), (157, 2.7813), (84, 2.7826), (207, 3.0562), (213, 2.6677)]


@pytest.mark.parametrize("name", ["udhr/eng.utf-8.txt", "udhr/deu.utf-8.txt"])
def test_a_published_model_gets_the_figure_of_a_plain_loop(measured, shared, name) -> None:
    model, path = shared / "models/tinystories-656k", shared / "text" / name
    tokenizer = AutoTokenizer.from_pretrained(model)
    encode = tokenizer.backend_tokenizer.encode
    ids = [1, *encode(path.read_text(), add_special_tokens=False).ids, tokenizer.eos_token_id]
    nll, count = plain_loop(model, ids, 512, 512)
    found = measured(model, path=path)
    assert found["nll"] == pytest.approx(nll, rel=1e-5)
    assert found["tokens"] == count
