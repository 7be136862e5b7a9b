"""A mixture of experts from the command line: the ladder of invariants."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.jobs import metrics

SHAPE = {
    "mixtral": ["model.config.num_local_experts=4"],
    "qwen3_moe": ["model.config.num_experts=4", "model.config.num_experts_per_tok=2"],
}


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short documents, several to a block."""
    path = tmp_path_factory.mktemp("text") / "stories.jsonl"
    words = "the fox saw a tree and then it ran home to see all of them again".split()
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randint(4, 40))) for _ in range(120)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def command(kind: str, text: Path, run: Path, *more: str) -> list[str]:
    return [
        "pretrain", "--text", str(text), f"model.architecture={kind}", *SHAPE[kind],
        "model.config.router_aux_loss_coef=0.1", "model.config.hidden_size=32",
        "model.config.num_hidden_layers=2", "tokenizer.vocab_size=300", "data.block_size=64",
        "train.global_batch_size=8", "train.max_steps=6", "train.logging_steps=1",
        "train.optimizer=adamw", "train.compile=false", "train.precision=fp32",
        "train.eval_steps=3",
        f"output_dir={run}", *more,
    ]  # fmt: skip


def figures(line: dict) -> dict:
    return {name: value for name, value in line.items() if name != "samples"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPE)
def test_micro_batches_processes_and_interruptions_change_nothing(
    llmkit, stories, tmp_path, kind
) -> None:
    def trained(name: str, *more: str, processes: int = 1) -> list[dict]:
        run = tmp_path / name
        ended = llmkit(*command(kind, stories, run, *more), processes=processes)
        assert ended.returncode == 0, ended.stderr
        return metrics(run)

    whole = trained("whole", "train.micro_batch_size=8")
    assert all(0.5 < line["router_aux_loss"] < 4 for line in whole if "train_loss" in line)
    assert any("validation_router_aux_loss" in line for line in whole)
    others = [
        trained("one", "train.micro_batch_size=1"),
        trained("three", "train.micro_batch_size=3"),
        trained("two", "train.micro_batch_size=2", processes=2),
        trained("parts", "train.micro_batch_size=2", "train.shard=true", processes=2),
    ]
    for other in others:
        for one, two in zip(whole, other, strict=True):
            assert one.get("samples") == two.get("samples")
            assert figures(one) == pytest.approx(figures(two), rel=1e-5)
    again = trained("again", "train.micro_batch_size=8")
    assert again == whole
    saving = ("train.micro_batch_size=8", "train.save_steps=3")
    assert trained("resumed", *saving) == whole
    run = tmp_path / "resumed"
    weights = (run / "final" / "model.safetensors").read_bytes()
    shutil.rmtree(run / "final")
    shutil.rmtree(max((run / "checkpoints").glob("step-*")))
    assert trained("resumed", *saving) == whole
    assert (run / "final" / "model.safetensors").read_bytes() == weights
