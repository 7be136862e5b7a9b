"""What a command trains is the same whether each process holds all weights or a part."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.commands.test_finetune_questions import jsonl, questions
from tests.commands.test_finetune_tagging import conll, sentences
from tests.harness import Server
from tests.jobs import WORDS, changed, metrics, weights, write_table

# With the default epsilon, AdamW would enlarge rounding where a gradient is 0, as of a key's bias.
TRAIN = (
    "train.adam_epsilon=1e-5",
    "train.global_batch_size=8", "train.micro_batch_size=2", "train.optimizer=adamw",
    "train.max_steps=6", "train.eval_steps=3", "train.logging_steps=1", "train.precision=fp32",
    "train.compile=false", "data.validation_fraction=0.2", 
    "train.ddp_timeout=60", "train.load_best_model_at_end=false",
)  # fmt: skip
NEW = (
    "model.config.hidden_size=32",
    "model.config.num_hidden_layers=2",
    "tokenizer.vocab_size=300",
)
LABELLED = ("data.max_length=40", *NEW)
SHORT = ("generation.max_new_tokens=4",)

CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "lora": ("completion", "csv", ("model.lora.r=4", *SHORT)),
    "completion": ("completion", "csv", SHORT),
    "tags": ("token_classification", "conll", LABELLED),
    "questions": ("question_answering", "jsonl", LABELLED),
    "translation": ("sequence_to_sequence", "csv", ("evaluation.responses=4", *SHORT, *NEW)),
    "checkpointing": ("causal", "txt", ("train.gradient_checkpointing=true", *NEW)),
    "bf16": ("causal", "txt", ("train.precision=bf16", *NEW)),
    "compiled": ("causal", "txt", ("train.compile=true", *NEW)),
    "trunk": ("causal", "txt", ("train.freeze=trunk",)),
    "experts": ("causal", "txt", ("model.architecture=mixtral", *NEW)),
}
"""The objective, the data, and further keys; those that describe no new model train another one."""


@pytest.fixture(scope="module")
def files(trials: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data in several formats, and a model to train further."""
    root, chance = tmp_path_factory.mktemp("files"), random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(3, 9))) for _ in range(60)]
    (root / "data.txt").write_text("\n".join(texts) + "\n")
    rows = [(text, f"{n} {texts[-n]}") for n, text in enumerate(texts)]
    write_table(root / "data.csv", rows, ("prompt", "response"))
    conll(root / "data.conll", sentences(60, 0))
    jsonl(root / "data.jsonl", questions(40, 0))
    line = ("pretrain", "--text", root / "data.txt", "--output-dir", root / "model", *TRAIN, *NEW)
    assert trials.run(*line, "data.block_size=64").code == 0
    return {path.suffix[1:] or path.name: path for path in root.iterdir()}


def trained(
    trials: Server, files: dict[str, Path], name: str, run: Path, shard: bool, *more: str
) -> Path:
    """A run of two processes."""
    objective, data, keys = CASES[name]
    command = ("pretrain", "--text") if objective == "causal" else ("finetune", "--csv")
    begun = () if NEW[0] in keys else ("--model", files["model"])
    block = ("data.block_size=64", *SHORT) if objective == "causal" else ()
    line = (*command, files[data], *begun, *block, *changed(TRAIN, *keys, *more))
    own = (f"train.objective={objective}", f"train.shard={str(shard).lower()}", "--output-dir", run)
    ends = [trial.end() for trial in trials.start_processes(2, *line, *own)]
    assert [ended.code for ended in ends] == [0, 0], ends[0].err
    assert ("holds a part of every weight" in ends[0].err) == shard
    return run


def check_equal(found: Path, expected: Path, loss: float = 1e-5, weight: float = 1e-4) -> None:
    """Losses and weights agree; a metric may count a tie differently."""
    for one, other in zip(metrics(found), metrics(expected), strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() & {"train_loss", "validation_loss", "grad_norm"}:
            assert one[name] == pytest.approx(other[name], rel=loss), name
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    assert max((ours[key] - theirs[key]).abs().max() for key in ours) < weight


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "lora" else pytest.mark.slow) for name in CASES]
)
def test_weights_in_parts_give_the_run_of_whole_ones(
    trials: Server, files: dict[str, Path], tmp_path: Path, name: str
) -> None:
    if name == "compiled" and not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    whole, parts = (trained(trials, files, name, tmp_path / str(s), s) for s in (False, True))
    check_equal(parts, whole, *((2e-3, 1e-3) if name == "bf16" else ()))


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_low_rank_updates_in_parts_resume_as_whole_ones_and_the_reverse(
    trials: Server, files: dict[str, Path], tmp_path: Path, shard: bool
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    trained(trials, files, "lora", whole, False, "train.save_steps=3")
    trained(trials, files, "lora", run, shard, "train.save_steps=3")
    shutil.rmtree(sorted((run / "checkpoints").iterdir())[-1])
    shutil.rmtree(run / "final")
    trained(trials, files, "lora", run, not shard, "train.save_steps=3")
    check_equal(run, whole)
