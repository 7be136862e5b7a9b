"""Weights in parts on several GPUs (NCCL). Nothing here has run yet: decision 63 lists what to look
at first."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.jobs import WORDS, metrics, weights

GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 2, reason="needs two CUDA devices")]

KEYS = (
    "model.config.hidden_size=64", "model.config.num_hidden_layers=3", "tokenizer.vocab_size=320",
    "data.block_size=32", "train.max_steps=8", "train.logging_steps=1", "train.precision=fp32",
    "train.global_batch_size=16", "train.micro_batch_size=2", "train.compile=false",
    "train.adam_epsilon=1e-5",
)  # fmt: skip


def launched(count: int, *line: object) -> str:
    """What a command in some processes prints; it must succeed."""
    command = [sys.executable, "-m", "llmkit", "launch", str(count), "--", *map(str, line)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chance = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(" ".join(chance.choices(WORDS, k=20)) for _ in range(80)) + "\n")
    return path


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_several_gpus_give_the_losses_of_one_with_weights_whole_and_in_parts(
    corpus: Path, tmp_path: Path, optimizer: str
) -> None:
    line = ("pretrain", "--text", corpus, *KEYS, f"train.optimizer={optimizer}")
    runs = {"one": (1, "false"), "whole": (GPUS, "false"), "parts": (GPUS, "true")}
    for name, (count, shard) in runs.items():
        launched(count, *line, f"train.shard={shard}", "--output-dir", tmp_path / name)
    one = metrics(tmp_path / "one")
    for name in ("whole", "parts"):  # TF32 and Muon's bf16 round more than a CPU
        for ours, theirs in zip(metrics(tmp_path / name), one, strict=True):
            for key in ours.keys() & {"train_loss", "validation_loss"}:
                assert ours[key] == pytest.approx(theirs[key], rel=2e-3), (name, key)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert max((whole[key] - parts[key]).abs().max() for key in whole) < 5e-3


def test_a_model_held_by_two_gpus_together_writes_the_texts_of_one(
    corpus: Path, tmp_path: Path
) -> None:
    heads = ("model.config.num_attention_heads=4", "model.config.num_key_value_heads=2")
    launched(1, "pretrain", "--text", corpus, *KEYS, *heads, "--output-dir", tmp_path / "run")
    line = (
        "generate", "--model", tmp_path / "run", "--prompt", "the cat", "--json",
        "model.tp_plan=auto", "generation.precision=fp32", "generation.do_sample=false",
    )  # fmt: skip
    assert launched(2, *line) == launched(1, *line)
