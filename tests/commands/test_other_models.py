"""Models that are neither causal, nor masked, nor classifiers of text are refused in every command,
and a model whose head is replaced is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForTokenClassification,
    CLIPConfig,
    CLIPModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from llmkit.cli import app
from llmkit.models import tokenizer as tokenizers

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 64}  # fmt: skip
PIXELS = {**SMALL, "image_size": 32, "patch_size": 16}
MAKERS: dict[str, Callable[[], Any]] = {
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=300, d_model=32, d_ff=64, d_kv=16, num_layers=1, num_heads=2)
    ),
    "vit": lambda: ViTForImageClassification(ViTConfig(**PIXELS)),
    "clip": lambda: CLIPModel(
        CLIPConfig(text_config={**SMALL, "vocab_size": 300}, vision_config=PIXELS)
    ),
    "pretraining": lambda: BertForPreTraining(BertConfig(vocab_size=300, **SMALL)),
    "tagger": lambda: BertForTokenClassification(BertConfig(vocab_size=300, **SMALL)),
}
STEP = ("train.max_steps=1", "train.compile=false", "train.global_batch_size=8")


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    """Models, a text, a table and conversations."""
    directory = tmp_path_factory.mktemp("other")
    tokenizer = tokenizers.train_bpe_with_frame(["the cat sat on a mat"] * 9, 290)
    for name, make in MAKERS.items():
        make().save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    (directory / "text.txt").write_text("the cat sat on a mat\n" * 200)
    rows = [f"the cat {number},{'ab'[number % 2]}" for number in range(40)]
    (directory / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    chats = [json.dumps({"prompt": f"the {n}", "response": "cat"}) for n in range(30)]
    (directory / "chats.jsonl").write_text("\n".join(chats) + "\n")
    return directory


def commands(room: Path) -> list[list[str]]:
    rows, chats, text = (str(room / n) for n in ("rows.csv", "chats.jsonl", "text.txt"))
    return [
        ["finetune", "--csv", rows, *STEP],
        ["finetune", "--csv", chats, "train.objective=completion", *STEP],
        ["pretrain", "--text", text, "data.block_size=16", *STEP],
        ["evaluate", "--text", text],
        ["evaluate", "--csv", rows],
        ["generate", "--prompt", "the cat"],
        ["predict", "--csv", rows],
        ["chat"],
    ]


@pytest.mark.parametrize("command", range(8))
@pytest.mark.parametrize("model", ["t5", "vit", "clip"])
def test_a_model_of_another_kind_is_refused(room, model: str, command, capsys, tmp_path) -> None:
    line = [*commands(room)[command], "--model", str(room / model)]
    if line[0] in ("finetune", "pretrain"):
        line += ["--output-dir", str(tmp_path / "run")]
    code = app.run_command(line)
    said = capsys.readouterr().err
    assert code in (65, 78), said
    assert model in said.lower()
    assert "next:" in said
    assert not (tmp_path / "run").exists()


def test_a_head_that_pretraining_drops_is_in_the_warnings(room, call, tmp_path) -> None:
    line = commands(room)[2]
    found = call(*line, "--model", room / "pretraining", "--output-dir", tmp_path / "run")
    assert found["code"] == 0, found["said"]
    assert any("cls.seq_relationship" in text for text in found["warnings"])


def test_a_head_that_a_classifier_replaces_is_in_the_warnings(room, call, tmp_path) -> None:
    line = commands(room)[0]
    found = call(*line, "--model", room / "tagger", "--output-dir", tmp_path / "run")
    assert found["code"] == 0, found["said"]
    assert any("BertForTokenClassification" in text for text in found["warnings"])
