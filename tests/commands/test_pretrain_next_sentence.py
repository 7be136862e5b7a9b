"""`llmkit pretrain train.next_sentence=true`: the ladder of invariants, and what comes after."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForPreTraining, AutoTokenizer

from llmkit.cli import app
from llmkit.data.examples.blocks import Vocabulary
from llmkit.data.examples.sentence_pairs import SentencePairs, sentence_marks
from llmkit.models import tokenizer as tokenizers
from tests.jobs import (
    CONFIGS,
    assert_choices_explained,
    assert_close,
    assert_held_out_agrees,
    assert_same,
    changed,
    tiny,
    token_file,
)

LINE = tiny(
    "train.next_sentence=true", "train.objective=masked", "train.precision=fp32",
    "data.document=blank_line",
    "data.block_size=32", "train.max_steps=6", "train.save_steps=2", "train.eval_steps=3",
)  # fmt: skip


def documents(n: int, chance: random.Random) -> list[list[str]]:
    """Documents of one to seven sentences, each document about its own animal."""
    animals = "cat dog cow hen fox owl bat ant".split()
    verbs = "runs sits eats sees hops".split()
    return [
        [f"the {animal} {chance.choice(verbs)} and {chance.choice(verbs)}."
         for _ in range(chance.randint(1, 7))]
        for animal in (animals[k % 8] for k in range(n))
    ]  # fmt: skip


def written(path: Path, texts: list[list[str]]) -> Path:
    path.write_text("\n\n".join("\n".join(lines) for lines in texts) + "\n")
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("text") / "text.txt", documents(60, random.Random(0)))


@pytest.fixture(scope="module")
def reference(text, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("runs") / "reference"
    assert app.run_command([*map(str, ("pretrain", "--text", text, *LINE, "-o", run))]) == 0
    return run


def test_a_resumed_run_is_bit_identical(reference, call, text, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    shutil.rmtree(sorted((run / "checkpoints").iterdir())[-1])
    shutil.rmtree(run / "final")
    done = call("pretrain", "--text", text, *LINE, "-o", run)
    assert "resuming from step 4" in done["said"], done["said"]
    assert_same(run, reference)
    fresh = call("pretrain", "--text", text, *LINE, "-o", tmp_path / "fresh")
    assert set(fresh["validation"]) == {
        "loss", "accuracy", "next_sentence_loss", "next_sentence_accuracy"
    }  # fmt: skip
    assert fresh["baseline"]["chance"]["next_sentence_accuracy"] == 0.5
    assert_same(tmp_path / "fresh", reference)


def test_micro_batches_and_two_processes_change_nothing(
    reference, call, llmkit, text, tmp_path
) -> None:
    small, two = tmp_path / "small", tmp_path / "two"
    line = changed(LINE, "train.micro_batch_size=3")
    assert call("pretrain", "--text", text, *line, "-o", small)["code"] == 0
    assert_close(small, reference)
    done = llmkit("pretrain", "--text", text, *LINE, "-o", two, processes=2)
    assert done.returncode == 0, done.stderr
    assert_close(two, reference)


def test_plain_transformers_gives_the_figures_and_evaluate_reports_them(
    reference, call, text, tmp_path
) -> None:
    few = documents(9, random.Random(1))
    held_out = written(tmp_path / "held-out.txt", few)
    found = call("evaluate", "--model", reference, "--text", held_out, "data.document=blank_line")
    assert found["code"] == 0, found["said"]
    final = reference / "final"
    model = AutoModelForPreTraining.from_pretrained(final).eval()
    assert type(model).__name__ == "BertForPreTraining"
    tokenizer = AutoTokenizer.from_pretrained(final)
    ids = [tokenizer("\n".join(lines), add_special_tokens=False)["input_ids"] for lines in few]
    vocabulary = Vocabulary(tokenizer.mask_token_id, tokenizer.pad_token_id,
                            tokenizers.special_tokens(tokenizer))  # fmt: skip
    file = token_file(ids, tokenizer.cls_token_id, tokenizer.sep_token_id)
    pairs = SentencePairs(file, 32, False, 0.15, vocabulary, "validation",
                          marks=sentence_marks(tokenizer))  # fmt: skip
    right, losses = [], []
    for row in range(len(pairs)):
        batch = pairs.batch([row])
        label = batch["next_sentence"]
        if label == -100:
            continue
        seen = batch.get("attention_mask", torch.ones(1, 32)).bool()[0]
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"][:, seen],
                           token_type_ids=batch["token_type_ids"][:, seen])  # fmt: skip
        chances = logits.seq_relationship_logits.double().log_softmax(-1)[0]
        losses.append(-float(chances[label]))
        right.append(float(chances.argmax() == label))
    assert found["sentence_pairs"] == len(right) > 3
    assert found["next_sentence_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert found["next_sentence_accuracy"] == pytest.approx(sum(right) / len(right))
    assert found["pseudo_perplexity"] > 1
    assert "accuracy of 0.5" in found["protocol"]["next_sentence"]


def test_the_run_is_described_and_each_choice_explained(reference) -> None:
    assert_held_out_agrees(reference)
    assert "train.next_sentence" not in assert_choices_explained(reference)
    card = (reference / "final" / "README.md").read_text()
    assert "next sentence accuracy" in card
    assert "chance 0.5" in card
    assert "next-sentence accuracy" in (reference / "report.html").read_text()


def test_it_continues_with_either_objective(reference, call, text, tmp_path) -> None:
    short = ("--text", text, "--model", reference, "data.document=blank_line",
             "train.max_steps=1", "data.block_size=32", "train.compile=false")  # fmt: skip
    done = call("pretrain", *short, "-o", tmp_path / "masked")
    assert done["code"] == 0, done["said"]
    assert set(done["validation"]) == {"loss", "accuracy"}
    masked = ("pretrain", *short, "--model", tmp_path / "masked", "train.next_sentence=true",
              "-o", tmp_path / "both")  # fmt: skip
    done = call(*masked)
    assert done["code"] == 0, done["said"]
    assert "new weights, initialised from the seed" in done["said"]
    architectures = json.loads((tmp_path / "both/final/config.json").read_text())["architectures"]
    assert architectures == ["BertForPreTraining"]


@pytest.mark.slow
def test_it_learns_which_segments_belong_together(call, tmp_path) -> None:
    """A second segment that begins with `once` begins another document: half of the others do."""
    chance = random.Random(0)
    verbs = "runs sits eats sees hops".split()
    texts = [[f"once it {chance.choice(verbs)}.", f"then it {chance.choice(verbs)}."]
             for _ in range(400)]  # fmt: skip
    text = written(tmp_path / "text.txt", texts)
    line = changed(
        LINE, "train.max_steps=240", "train.eval_steps=240", "train.save_steps=240",
        "train.global_batch_size=16", "train.micro_batch_size=16", "train.optimizer=adamw",
        "train.learning_rate=3e-3", "train.lr_scheduler_type=constant", "train.weight_decay=0.01",
        "model.config.hidden_size=64", "model.config.num_hidden_layers=1",
        "model.config.hidden_dropout_prob=0", "model.config.attention_probs_dropout_prob=0",
        "data.validation_fraction=0.2",
    )  # fmt: skip
    done = call("pretrain", "--text", text, *line, "-o", tmp_path / "run")
    assert done["validation"]["next_sentence_loss"] < 0.6, done["said"]  # at best 0.48
    assert done["validation"]["next_sentence_accuracy"] > 0.65  # at best 0.75


def test_a_mixture_draws_pairs_within_its_domains(call, text, tmp_path) -> None:
    other = written(tmp_path / "other.txt", documents(20, random.Random(2)))
    domains = [f"data.mixture.{name}.files={path}" for name, path in (("a", text), ("b", other))]
    line = changed(LINE, "train.max_steps=2")
    done = call("pretrain", *line, *domains, "-o", tmp_path / "run")
    assert done["code"] == 0, done["said"]
    assert {"next_sentence_loss/a", "next_sentence_loss/b"} <= done["validation"].keys()


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        (("model.architecture=modernbert",), 78, "bert, ernie, megatron-bert, mobilebert"),
        (("train.objective=causal",), 78, "train.next_sentence"),
        (("data.document=line",), 65, "has two sentences"),
        (("train.next_sentence=false", "train.metric_for_best_model=next_sentence_loss"), 78,
         "loss, accuracy"),
    ],
)  # fmt: skip
def test_what_cannot_learn_pairs_is_refused(call, text, tmp_path, settings, code, said) -> None:
    done = call("pretrain", "--text", text, *changed(LINE, *settings), "-o", tmp_path / "run")
    assert done["code"] == code
    assert said in done["said"]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_shipped_config_runs(call, text, tmp_path) -> None:
    small = (*tiny("data.block_size=32"), "train.max_steps=1", "train.max_minutes=null")
    config = CONFIGS / "pretrain-next-sentence.yaml"
    done = call("pretrain", config, "--text", text, "-o", tmp_path / "run", *small)
    assert done["code"] == 0, done["said"]
    assert done["validation"]["next_sentence_loss"] > 0
