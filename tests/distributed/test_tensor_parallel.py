"""A model that is split across processes gives the figures and texts of one process."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from llmkit.distributed import tensor_parallel
from llmkit.errors import ConfigError
from llmkit.models import tokenizer as tokenizers
from tests.harness import Ended, Server
from tests.jobs import WORDS, write_table
from tests.training.conftest import tiny_model

TEXT = "\n".join(" ".join(WORDS[n % 9 :]) for n in range(30)) + "\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A causal model, a classifier, and their data."""
    root = tmp_path_factory.mktemp("files")
    tokenizer = tokenizers.train_bpe(TEXT.splitlines(), 290)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=30, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        initializer_range=0.3, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    for name, kind in (("causal", LlamaForCausalLM), ("labels", LlamaForSequenceClassification)):
        kind(shape).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    (root / "text.txt").write_text(TEXT)
    (root / "prompts.txt").write_text("the cat\na dog had run\nhow far\n")
    rows = [(text, f"LABEL_{n % 2}") for n, text in enumerate(TEXT.splitlines())]
    write_table(root / "rows.csv", rows)
    write_table(root / "pairs.csv", rows[:5], ("prompt", "reference"))
    return {path.stem: path for path in root.iterdir()}


def outputs(trials: Server, *line: object) -> Iterator[Ended]:
    """What one process and rank 0 of two print, each with the model as a whole or in slices."""
    line = (*line, "model.tp_plan=auto", "--json")
    for count in (1, 2):
        ends = [trial.end() for trial in trials.start_processes(count, *line)]
        assert [end.code for end in ends] == [0] * count, ends[-1].err
        yield ends[0]


def figures(ended: Ended) -> dict[str, Any]:
    found = json.loads(ended.out)
    return {name: value for name, value in found.items() if isinstance(value, float | int)}


def test_each_process_holds_its_slices_and_gets_the_logits_of_the_whole_model(
    trials: Server, tmp_path: Path
) -> None:
    for architecture in ("llama", "qwen3", "gemma3_text", "mixtral"):
        tiny_model(architecture).save_pretrained(tmp_path / architecture)
    keywords = {"directories": [str(path) for path in tmp_path.iterdir()]}
    for trial in trials.start_processes(2, function="hold_slices", keywords=keywords):
        ended = trial.end()
        assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    "line",
    [
        ("evaluate", "--model", "causal", "--text", "text"),
        pytest.param(("evaluate", "--model", "labels", "--csv", "rows"), marks=pytest.mark.slow),
        pytest.param(
            ("evaluate", "--model", "causal", "--csv", "pairs", "evaluation.prompt_column=prompt",
             "evaluation.reference_column=reference"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["text", "labels", "references"],
)  # fmt: skip
def test_evaluate_gives_the_figures_of_one_process(
    trials: Server, files: dict[str, Path], line: tuple[str, ...]
) -> None:
    one, two = map(figures, outputs(trials, *(files.get(word, word) for word in line)))
    for timing in ("seconds", "tokens_per_second", "examples_per_second"):
        assert one.pop(timing, None) is None or two.pop(timing)
    assert len(one) > 2
    assert one == pytest.approx(two, rel=1e-5)


@pytest.mark.parametrize(
    "key",
    [
        "generation.num_return_sequences=2",
        pytest.param("generation.num_beams=2", marks=pytest.mark.slow),
    ],
)
def test_generate_writes_the_texts_of_one_process(
    trials: Server, files: dict[str, Path], key: str
) -> None:
    line = ("generate", "--model", files["causal"], "--prompts-file", files["prompts"], key)
    one, two = (ended.out.splitlines() for ended in outputs(trials, *line))
    for ours, theirs in zip(map(json.loads, one), map(json.loads, two), strict=True):
        assert ours.pop("logprob") == pytest.approx(theirs.pop("logprob"), abs=2e-3)
        assert ours == theirs


@pytest.mark.slow
def test_predict_writes_the_labels_of_one_process_once(
    trials: Server, files: dict[str, Path], tmp_path: Path
) -> None:
    line = ("predict", "--model", files["labels"], "--csv", files["rows"], "predict.precision=fp32")
    tables = []
    for count, _ in enumerate(outputs(trials, *line, "--output", tmp_path / "labels.csv")):
        with (tmp_path / "labels.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
        (tmp_path / "labels.csv").rename(tmp_path / f"{count}.csv")
    one, two = tables
    assert len(one) == 30
    column = "probability_LABEL_0"
    for ours, theirs in zip(one, two, strict=True):
        assert ours["label"] == theirs["label"]
        assert float(ours[column]) == pytest.approx(float(theirs[column]), abs=2e-6)


def test_a_model_that_cannot_be_divided_is_refused_before_its_weights_are_read(
    trials: Server, files: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((files["causal"] / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    line = ("generate", "--model", tmp_path, "--prompt", "the", "model.tp_plan=auto")
    for ended in [trial.end() for trial in trials.start_processes(3, *line)]:
        assert ended.code == 78, ended.err
    with pytest.raises(ConfigError, match="no tensor-parallel plan"):
        tensor_parallel.check_divisible(GPT2Config(), "mine", 2)
    shape = LlamaConfig(num_attention_heads=8, num_key_value_heads=4)
    tensor_parallel.check_divisible(shape, "mine", 4)
    with pytest.raises(ConfigError, match="num_key_value_heads=4") as refused:
        tensor_parallel.check_divisible(shape, "mine", 8)
    assert refused.value.next == "launch 1 or 2 or 4"


def test_what_needs_whole_weights_is_refused_with_it(
    trials: Server, files: dict[str, Path]
) -> None:
    for key in ("generation.weights=int8", "generation.experts=cat"):
        line = ("generate", "--model", files["causal"], "--prompt", "the", "model.tp_plan=auto")
        ended = trials.run(*line, key)
        assert ended.code == 78
        assert "model.tp_plan: cannot be combined with" in ended.err
