"""`llmkit pretrain` of masked language models: the ladder of invariants, and what comes after."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from llmkit.cli import app
from llmkit.data.examples.blocks import MaskedBlocks, Vocabulary
from llmkit.models import tokenizer as tokenizers
from tests.jobs import (
    CONFIGS,
    SHARED,
    assert_choices_explained,
    assert_held_out_agrees,
    assert_same,
    changed,
    metrics,
    needs_shared,
    tiny,
    token_file,
)


def masked(*changes: str) -> list[str]:
    """Overrides for a tiny masked model, some of them changed."""
    own = (
        "data.block_size=24", "train.micro_batch_size=8", "data.document=line",
        "train.objective=masked", "train.precision=fp32",
        "train.max_steps=12", "train.save_steps=4", "train.eval_steps=6", "train.logging_steps=3",
    )  # fmt: skip
    return tiny(*changed(own, *changes))


MASKED = masked()


@pytest.fixture(scope="module")
def reference(corpus, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("runs") / "reference"
    command = ("pretrain", "--text", corpus, *MASKED, "--output-dir", run)
    assert app.run_command([*map(str, command)]) == 0
    return run


def assert_close(a: Path, b: Path) -> None:
    for one, other in zip(metrics(a), metrics(b), strict=True):
        assert one.keys() == other.keys()
        grad_norms = one.pop("grad_norm", 0.0), other.pop("grad_norm", 0.0)
        assert grad_norms[0] == pytest.approx(grad_norms[1], rel=1e-2)
        if "samples" not in one:
            assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("architecture", ["modernbert", "bert", "roberta", "transformer"])
def test_a_dry_run_builds_the_model_of_a_small_vocabulary(call, corpus, architecture) -> None:
    command = ("pretrain", "--text", corpus, *MASKED, f"model.architecture={architecture}")
    assert call(*command, "--dry-run")["parameters"] > 0


def test_stdout_holds_the_contracts_json(reference, call, corpus) -> None:
    result = call("pretrain", "--text", corpus, *MASKED, "--output-dir", reference)
    assert set(result["validation"]) == {"loss", "accuracy"}
    assert result["step"] == 12
    assert not any("per_second" in name for name in result)  # complete already: nothing was trained
    config = (reference / "config.yaml").read_text()
    assert "objective: masked" in config
    assert "mask_probability: 0.3" in config
    assert any("samples" in line for line in metrics(reference))


def test_plain_transformers_gives_the_reported_loss_one_document_at_a_time(
    reference, corpus, call, tmp_path
) -> None:
    held_out = tmp_path / "held-out.txt"
    lines = corpus.read_text().splitlines()[:9]
    held_out.write_text("\n".join(lines) + "\n")
    files = ("--text", corpus, f"data.validation_files={held_out}")
    result = call("pretrain", *files, *masked("train.max_steps=2"), "--output-dir", tmp_path / "r")
    assert result["code"] == 0, result["said"]
    assert {"tokens_per_second", "predictions_per_second"} <= result.keys()
    final = tmp_path / "r" / "final"
    model = AutoModelForMaskedLM.from_pretrained(final).eval()
    tokenizer = AutoTokenizer.from_pretrained(final)
    ids = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
    special = np.isin(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    vocabulary = Vocabulary(tokenizer.mask_token_id, tokenizer.pad_token_id, special)
    tokens = token_file(ids, tokenizer.cls_token_id, tokenizer.sep_token_id)
    blocks = MaskedBlocks(tokens, 24, True, 0.3, vocabulary, "validation")
    nll = hits = count = 0.0
    batch = blocks.batch(range(len(blocks)))
    for row in range(len(blocks)):
        documents, ids_of_row = batch["documents"][row], batch["input_ids"][row]
        hidden = dict(zip(batch["places"][row].tolist(), batch["targets"][row], strict=True))
        for number in range(1, int(documents.max()) + 1):
            places = torch.nonzero(documents == number).flatten()
            with torch.no_grad():
                logits = model(input_ids=ids_of_row[places][None]).logits[0].double()
            for place, scores in zip(places.tolist(), logits, strict=True):
                target = hidden.get(place)
                if target is not None and target != -100:
                    nll += functional.cross_entropy(scores, target).item()
                    hits += float(scores.argmax() == target)
                    count += 1
    assert count > 20
    assert result["validation"]["loss"] == pytest.approx(nll / count, abs=1e-4)
    assert result["validation"]["accuracy"] == pytest.approx(hits / count, abs=1e-9)


def test_the_same_command_again_is_bit_identical(reference, call, corpus, tmp_path) -> None:
    result = call("pretrain", "--text", corpus, *MASKED, "--output-dir", tmp_path / "again")
    assert result["code"] == 0, result["said"]
    assert_same(tmp_path / "again", reference)


def test_a_killed_run_resumes_bit_identically(reference, llmkit, trials, corpus, tmp_path) -> None:
    run = tmp_path / "killed"
    command = ("pretrain", "--text", corpus, *MASKED, "--output-dir", run)
    process = trials.start(*command)
    process.until_lines(run / "metrics.jsonl", 2)
    process.end(signal.SIGKILL)
    again = llmkit(*command)
    assert again.returncode == 0, again.stderr
    assert_same(run, reference)


@pytest.mark.parametrize("size", [1, 3])
def test_the_micro_batch_size_changes_nothing(reference, call, corpus, tmp_path, size) -> None:
    changed = masked(f"train.micro_batch_size={size}")
    result = call("pretrain", "--text", corpus, *changed, "--output-dir", tmp_path / "r")
    assert result["code"] == 0, result["said"]
    assert_close(tmp_path / "r", reference)


def test_two_processes_give_what_one_gives(reference, llmkit, corpus, tmp_path) -> None:
    run = tmp_path / "two"
    done = llmkit("pretrain", "--text", corpus, *MASKED, "--output-dir", run, processes=2)
    assert done.returncode == 0, done.stderr
    assert_close(run, reference)


def test_it_resumes_as_what_it_is_and_is_measured_and_fine_tuned(
    reference, call, corpus, tmp_path
) -> None:
    """`train.objective` left out goes by the model."""
    text = ("--text", corpus, "data.document=line")
    steps = ("--model", reference, "train.max_steps=1")
    more = call("pretrain", *text, *steps, "data.block_size=20", "--output-dir", tmp_path / "more")
    assert more["code"] == 0, more["said"]
    assert set(more["validation"]) == {"loss", "accuracy"}
    few = tmp_path / "few.txt"
    few.write_text("the cat sat on a mat\n")
    measured = call("evaluate", "--model", reference, "--text", few, "evaluation.window=12")
    assert measured["code"] == 0, measured["said"]
    assert measured["pseudo_nll"] > 0
    table = tmp_path / "table.csv"
    rows = [f"the {word} sat {n},{word}" for n in range(12) for word in ("cat", "dog")]
    table.write_text("\n".join(["text,label", *rows]) + "\n")
    tuned = call("finetune", "--csv", table, *steps, "--output-dir", tmp_path / "tuned")
    assert tuned["code"] == 0, tuned["said"]


def test_fill_mask_says_what_was_learned(call, tmp_path) -> None:
    """Counting in a circle: a number follows from either neighbour."""
    words = "one two three four five six seven".split()
    lines = [" ".join((words * 3)[n % 7 :][:9]) for n in range(140)]
    text = tmp_path / "circle.txt"
    text.write_text("\n".join(lines) + "\n")
    run = tmp_path / "run"
    settings = masked(
        "train.max_steps=200", "train.eval_steps=200", "train.save_steps=200",
        "tokenizer.vocab_size=400", "model.config.hidden_size=48", "train.global_batch_size=16",
        "train.micro_batch_size=16", "train.whole_word_masking=true", "train.mask_probability=0.15",
    )  # fmt: skip
    done = call("pretrain", "--text", text, *settings, "--output-dir", run)
    assert done["code"] == 0, done["said"]
    assert done["validation"]["accuracy"] > 0.5
    fill = pipeline("fill-mask", model=str(run / "final"), device="cpu")
    assert fill("two three four[MASK] six seven one")[0]["token_str"].strip() == "five"


@pytest.mark.parametrize(
    "architecture", ["bert", "roberta", "distilbert", "electra", "transformer"]
)
def test_every_kind_of_masked_model_trains(call, corpus, tmp_path, architecture) -> None:
    settings = masked("train.max_steps=1", f"model.architecture={architecture}")
    done = call("pretrain", "--text", corpus, *settings, "--output-dir", tmp_path / "run")
    assert done["code"] == 0, done["said"]
    final = tmp_path / "run" / "final"
    assert type(AutoModelForMaskedLM.from_pretrained(final)).__name__.endswith("ForMaskedLM")


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        (("model.architecture=llama",), 78, "llama sees only the tokens before a token"),
        (("model.architecture=bert", "train.objective=causal"), 78, "bert sees the tokens on both"),
        (("model.architecture=deberta-v2",), 78, "data.isolate_documents=false"),
        (("train.objective=causal", "train.mask_probability=0.2"), 78, "train.mask_probability"),
        (("train.mask_probability=1.5",), 78, "train.mask_probability"),
        (("data.block_size=3",), 78, "data.block_size=4"),
        (
            ("model.architecture=roberta", "model.config.max_position_embeddings=24"),
            78,
            "exceed the model's 23 positions",
        ),
        (("train.metric_for_best_model=perplexity",), 78, "loss, accuracy"),
    ],
)
def test_what_does_not_fit_is_reported(call, corpus, tmp_path, settings, code, said) -> None:
    done = call("pretrain", "--text", corpus, *masked(*settings), "--output-dir", tmp_path / "run")
    assert done["code"] == code
    assert said in done["said"]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_tokenizer_without_a_mask_is_refused(call, corpus, tmp_path) -> None:
    tokenizers.train_bpe(["some text"], 300).save_pretrained(tmp_path / "plain")
    settings = masked(f"tokenizer.name_or_path={tmp_path / 'plain'}")
    done = call("pretrain", "--text", corpus, *settings, "--output-dir", tmp_path / "run")
    assert done["code"] == 78
    assert "has no mask token" in done["said"]
    assert not (tmp_path / "run").exists()


@needs_shared
def test_a_published_word_piece_tokenizer_serves(call, corpus, tmp_path) -> None:
    settings = masked(
        f"tokenizer.name_or_path={SHARED / 'tokenizers' / 'bert-base-uncased'}",
        "model.architecture=bert", "train.whole_word_masking=true", "train.max_steps=1",
    )  # fmt: skip
    settings = [each for each in settings if not each.startswith("tokenizer.vocab_size")]
    done = call("pretrain", "--text", corpus, *settings, "--output-dir", tmp_path / "run")
    assert done["code"] == 0, done["said"]
    saved = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    assert saved("a")["input_ids"] == [101, 1037, 102]


def test_a_causal_model_is_not_continued_with_masks(call, corpus, tmp_path) -> None:
    text = ("--text", corpus, "data.document=line")
    small = tiny("train.max_steps=1")
    done = call(
        "pretrain", *text, *small, "model.architecture=gpt2", "--output-dir", tmp_path / "c"
    )
    assert done["code"] == 0, done["said"]
    masked = call("pretrain", *text, "--model", tmp_path / "c", "train.objective=masked",
                  "--output-dir", tmp_path / "m")  # fmt: skip
    assert masked["code"] == 78
    assert "it is a causal language model" in masked["said"]


def test_the_shipped_config_runs(call, corpus, tmp_path) -> None:
    small = (*tiny("data.block_size=32"), "train.max_steps=1", "train.max_minutes=null")
    config = CONFIGS / "pretrain-masked.yaml"
    text = ("--text", corpus, "--output-dir", tmp_path / "run")
    done = call("pretrain", config, *text, *small)
    assert done["code"] == 0, done["said"]
    assert done["validation"]["loss"] > 0


@pytest.mark.slow
def test_fine_tuning_from_masks_beats_random_weights(call, tmp_path) -> None:
    """Topics are told by words that the labelled rows do not show, only the raw text does."""
    chance = random.Random(0)
    topics = {name: [f"{name}{letter}" for letter in "abcdefghijklmnop"] for name in ("sky", "ash")}
    text = tmp_path / "text.txt"
    lines = [" ".join(chance.choices(topics[name], k=8)) for _ in range(400) for name in topics]
    text.write_text("\n".join(lines) + "\n")
    for part, words in {"train": slice(0, 4), "test": slice(4, 16)}.items():
        rows = [f"{' '.join(chance.choices(topics[name][words], k=6))} {n},{name}"
                for n in range(30) for name in topics]  # fmt: skip
        (tmp_path / f"{part}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    settings = masked("train.max_steps=300", "train.eval_steps=300", "train.save_steps=300")
    assert call("pretrain", "--text", text, *settings, "--output-dir", tmp_path / "m")["code"] == 0
    files = ("--csv", tmp_path / "train.csv", f"data.test_files={tmp_path / 'test.csv'}",
             "train.num_train_epochs=6", "train.learning_rate=1e-3")  # fmt: skip
    shape = ("model.config.hidden_size=32", "model.config.num_hidden_layers=2")
    tuned = call("finetune", *files, "--model", tmp_path / "m", "--output-dir", tmp_path / "t")
    fresh = call("finetune", *files, *shape, "tokenizer.vocab_size=300",
                 "--output-dir", tmp_path / "f")  # fmt: skip
    assert tuned["test"]["accuracy"] > fresh["test"]["accuracy"] + 0.1


def test_what_became_of_each_hidden_token_adds_up_to_the_figures(reference) -> None:
    found = assert_held_out_agrees(reference)
    assert found.kind == "masked text"


def test_every_choice_of_auto_has_its_reason(reference) -> None:
    assert_choices_explained(reference)
