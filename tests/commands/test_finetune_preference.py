"""`llmkit finetune train.objective=preference` as a user runs it, on pairs made by a rule."""

from __future__ import annotations

import csv
import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkit.models import tokenizer
from tests.jobs import (
    CONFIGS,
    assert_choices_explained,
    assert_close,
    assert_held_out_agrees,
    assert_resumes_to_the_bit,
    assert_same,
    changed,
    finetuned,
    finetuning,
    metrics,
    resume_killed,
    resume_shortened,
    save_new_model,
    write_parts,
    write_table,
)

COLUMNS = ("prompt", "chosen", "rejected")
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black"}
SMALL = (
    "train.objective=preference", "train.learning_rate=2e-3", "train.global_batch_size=8",
    "train.num_train_epochs=5", "train.compile=false", "train.precision=fp32",
    "generation.max_new_tokens=4", "generation.do_sample=false", "data.max_length=64",
)  # fmt: skip


def rows(first: int, n: int) -> list[tuple[str, str, str]]:
    """The right colour of a thing is preferred."""
    things = list(COLOURS)
    return [
        (f"what of {things[k % 4]} {first + k}", COLOURS[things[k % 4]],
         COLOURS[things[(k + 1 + k // 4 % 3) % 4]])
        for k in range(n)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    texts = [f"{a} {b} {c}\n\n### User: Assistant:" for a, b, c in rows(0, 200)]
    path = tmp_path_factory.mktemp("models") / "base"
    return save_new_model(path, tokenizer.train_bpe(texts, 330))


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, Path]:
    write = partial(write_table, columns=COLUMNS)
    parts = {"train": rows(100, 96), "validation": rows(300, 12)}
    return write_parts(tmp_path_factory, "csv", write, **parts)


@pytest.fixture(scope="module")
def command(base, tables) -> tuple[object, ...]:
    return finetuning(tables, "--model", base, *SMALL)


@pytest.fixture(scope="module")
def reference(command, tmp_path_factory) -> Path:
    return finetuned(tmp_path_factory, command)["run"]


def evaluation(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())["validation"]
    return found


def test_the_model_learns_which_responses_are_preferred(reference) -> None:
    found = evaluation(reference)
    assert found["accuracy"] > 0.9
    assert found["loss"] < 0.6 < math.log(2)
    assert found["margin"] == pytest.approx(found["chosen_gain"] - found["rejected_gain"])
    assert found["intervals"]["accuracy"][0] > 0.5
    result = json.loads((reference / "run.json").read_text())["result"]
    assert result["baseline"]["reference"] == pytest.approx(
        {"loss": math.log(2), "accuracy": 0.5, "margin": 0}
    )
    first = next(line for line in metrics(reference) if "train_loss" in line)
    assert first["train_loss"] == pytest.approx(math.log(2), abs=2e-3)
    assert_held_out_agrees(reference)
    assert_choices_explained(reference)


def log_probabilities(directory: Path, table: Path) -> np.ndarray[Any, Any]:
    """[pairs, 2] by plain transformers, one response at a time."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    own = AutoTokenizer.from_pretrained(directory)
    found = []
    with table.open() as file:
        for row in csv.DictReader(file):
            before = own(f"{own.bos_token}### User:\n{row['prompt']}\n\n### Assistant:\n")[
                "input_ids"
            ]
            for side in ("chosen", "rejected"):
                said = own(row[side] + own.eos_token)["input_ids"]
                with torch.no_grad():
                    logits = model(torch.tensor([before + said])).logits[0, len(before) - 1 : -1]
                chances = torch.log_softmax(logits, -1)
                found.append(float(chances[torch.arange(len(said)), said].sum()))
    return np.array(found).reshape(-1, 2)


def test_plain_transformers_gives_the_reported_figures(reference, base, tables) -> None:
    before = log_probabilities(base, tables["validation"])
    gains = log_probabilities(reference / "final", tables["validation"]) - before
    margin = gains[:, 0] - gains[:, 1]
    found = evaluation(reference)
    assert found["pairs"] == 12
    assert found["loss"] == pytest.approx(np.log1p(np.exp(-0.1 * margin)).mean(), rel=1e-4)
    assert found["accuracy"] == (margin > 0).mean()
    assert found["margin"] == pytest.approx(margin.mean(), rel=1e-3)
    assert found["chosen_gain"] == pytest.approx(gains[:, 0].mean(), rel=1e-3, abs=1e-4)
    kept = load_file(reference / "reference.safetensors")
    np.testing.assert_allclose(kept["validation"], before, rtol=1e-4)
    assert kept["train"].shape == (96, 2)
    best = min(metrics(reference), key=lambda line: line.get("validation_loss", 9))
    assert best["validation_loss"] == pytest.approx(found["loss"], rel=1e-4)


@pytest.mark.parametrize("size", [1, 3])
def test_the_micro_batch_changes_no_figure(reference, command, call, tmp_path, size) -> None:
    run = tmp_path / "run"
    result = call(*command, f"train.micro_batch_size={size}", "--output-dir", run)
    assert result["code"] == 0, result["said"]
    assert_close(reference, run, rel=2e-3, abs=2e-3)


def test_a_killed_run_resumes_to_the_bit_without_measuring_the_reference_again(
    reference, command, call, trials, tmp_path
) -> None:
    run = tmp_path / "killed"
    result = resume_killed(trials, call, command, run)
    assert "reference model, once" not in result["said"]
    assert_same(run, reference)
    kept = [each / "reference.safetensors" for each in (run, reference)]
    assert kept[0].read_bytes() == kept[1].read_bytes()


@pytest.mark.parametrize("damage", ["removed", "cut", "of another model"])
def test_a_reference_that_is_lost_is_computed_from_the_base_again(
    reference, command, call, tmp_path, damage
) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    file = run / "reference.safetensors"
    before = file.read_bytes()
    if damage == "removed":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(before[:-9])
    else:
        save_file({k: v - 1 for k, v in load_file(file).items()}, file, {"key": "other"})
    result = resume_shortened(call, command, run)
    assert "reference model, once" in result["said"]
    assert file.read_bytes() == before
    assert_same(run, reference)


def test_two_processes_give_what_one_gives(reference, command, llmkit, tmp_path) -> None:
    run = tmp_path / "two"
    done = llmkit(*command, "--output-dir", run, "--json", processes=2)
    assert done.returncode == 0, done.stderr
    assert_close(reference, run, rel=2e-3, abs=2e-3)
    kept = [load_file(each / "reference.safetensors") for each in (run, reference)]
    np.testing.assert_allclose(kept[0]["train"], kept[1]["train"], rtol=1e-5)


def test_low_rank_updates_are_compared_with_their_base_and_resume_to_the_bit(
    base, tables, call, tmp_path
) -> None:
    pytest.importorskip("peft")
    keys = changed(SMALL, "model.lora.r=4", "train.num_train_epochs=1", "train.save_steps=2",
                   "train.load_best_model_at_end=false")  # fmt: skip
    line = finetuning(tables, "--model", base, *keys)
    # The updates are not zero any more when the reference is computed again.
    whole, _ = assert_resumes_to_the_bit(call, line, tmp_path, "reference.safetensors")
    before = log_probabilities(base, tables["validation"])
    for run in (whole, tmp_path / "resumed"):
        kept = load_file(run / "reference.safetensors")
        np.testing.assert_allclose(kept["validation"], before, rtol=1e-4)


@pytest.mark.parametrize(
    ("keys", "unchanged"),
    [
        (("train.preference_loss=ipo", "train.beta=0.5"), 1.0),
        (("train.sft_weight=0.1", "train.label_smoothing_factor=0.1"), math.log(2)),
    ],
)
def test_other_losses_learn_too(base, tables, call, tmp_path, keys, unchanged) -> None:
    line = finetuning(tables, "--model", base, *SMALL, *keys)
    result = call(*line, "--output-dir", tmp_path / "run")
    assert result["code"] == 0, result["said"]
    assert result["baseline"]["reference"]["loss"] == pytest.approx(unchanged)
    assert result["validation"]["loss"] < unchanged
    assert result["validation"]["accuracy"] > 0.5
    if "train.sft_weight=0.1" in keys:
        assert result["validation"]["chosen_gain"] > 1


def warned(result: dict[str, Any], words: str) -> bool:
    return any(words in text for text in result["warnings"])


def test_a_run_that_learned_nothing_says_so(base, tables, call, tmp_path) -> None:
    keys = changed(SMALL, "train.learning_rate=1e-9", "train.num_train_epochs=1")
    result = call(*finetuning(tables, "--model", base, *keys, "--output-dir", tmp_path / "run"))
    assert result["code"] == 0, result["said"]
    assert warned(result, "has not learned which responses are preferred")
    assert not warned(result, "become less likely")


def test_early_stopping_and_the_best_model_follow_a_metric_of_pairs(
    base, tables, call, tmp_path
) -> None:
    keys = changed(SMALL, "train.num_train_epochs=20", "train.early_stopping_patience=1",
                   "train.metric_for_best_model=accuracy")  # fmt: skip
    run = tmp_path / "run"
    result = call(*finetuning(tables, "--model", base, *keys, "--output-dir", run))
    assert result["code"] == 0, result["said"]
    assert "stopping at step" in result["said"]
    values = {line["step"]: line["validation_accuracy"] for line in metrics(run)
              if "validation_accuracy" in line}  # fmt: skip
    assert values[result["best_step"]] == max(values.values())


def test_the_dry_run_counts_what_is_skipped_and_loads_no_weights(base, call, tmp_path) -> None:
    table = [*rows(0, 30), ("same", "a", "a"), ("word " * 90, "yes", "no"), rows(0, 1)[0]]
    path = write_table(tmp_path / "t.csv", table, COLUMNS)
    run = tmp_path / "run"
    line = ("finetune", "--csv", path, "--model", base, *SMALL, "data.validation_fraction=0")
    report = call(*line, "--dry-run", "--output-dir", run)
    assert report["code"] == 0, report["said"]
    assert report["rows"] == 32
    for name, row in (("identical", 31), ("left_out", 32), ("duplicates", 33)):
        assert report[name]["count"] == 1, name
        assert report[name]["rows"][0]["row"] == row
    assert report["expected"]["steps"] == 20
    assert not run.exists()


def test_conversations_are_learned_by_the_shipped_config_and_measured_beside_their_reference(
    base, call, tmp_path
) -> None:
    def said(prompt: str, response: str) -> list[dict[str, str]]:
        turns = (("user", "hello"), ("assistant", "yes"), ("user", prompt), ("assistant", response))
        return [{"role": role, "content": content} for role, content in turns]

    lines = [{"chosen": said(a, b), "rejected": said(a, c)} for a, b, c in rows(0, 40)]
    path, run = tmp_path / "pairs.jsonl", tmp_path / "run"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = ("train.max_steps=3", "train.num_train_epochs=null", "generation.max_new_tokens=4")
    result = call("finetune", CONFIGS / "finetune-preference.yaml", "--csv", path, "--model", base,
                  *changes, "--output-dir", run)  # fmt: skip
    assert result["code"] == 0, result["said"]
    assert result["validation"]["pairs"] == 4
    assert result["pairs_per_second"] > 0
    found = call("evaluate", "--model", run, "--csv", path, f"evaluation.reference_model={base}")
    assert found["code"] == 0, found["said"]
    assert found["pairs"] == 40
    assert found["not_trained_on"]["pairs"] == 4
    for name in ("accuracy", "margin", "chosen_gain", "rejected_log_probability"):
        wanted = result["validation"][name]
        assert found["not_trained_on"][name] == pytest.approx(wanted, rel=1e-3, abs=1e-4), name


def test_evaluate_compares_models_and_names_the_worst_pairs(
    reference, base, tables, call, tmp_path
) -> None:
    line = ("evaluate", "--model", reference, "--model", base, "--csv", tables["validation"],
            f"evaluation.reference_model={base}")  # fmt: skip
    dry = call(*line, "--dry-run")
    assert dry["code"] == 0, dry["said"]
    assert dry["pairs"] == 12
    log = tmp_path / "samples.jsonl"
    found = call(*line, f"evaluation.log_samples={log}", "evaluation.worst=3")
    assert found["code"] == 0, found["said"]
    tuned, same = found["models"]
    before = evaluation(reference)
    for name in ("accuracy", "margin", "chosen_gain", "rejected_gain"):
        assert tuned[name] == pytest.approx(before[name], rel=1e-3, abs=1e-4)
        assert same[name] == pytest.approx(0, abs=1e-5)
    assert found["comparisons"][0]["better"] == str(reference)
    assert any("has not learned" in text for text in found["warnings"])
    assert [row["margin"] for row in found["worst"] if row["margin"] > 0] == []
    samples = [json.loads(text) for text in log.open()]
    assert len(samples) == 24
    assert {"prompt", "chosen", "rejected", "margin", "row"} <= samples[0].keys()
    margins = [each["margin"] for each in samples if each["model"] == str(reference)]
    assert np.mean(margins) == pytest.approx(tuned["margin"])


def test_evaluate_refuses_a_reference_that_reads_other_tokens(
    reference, tables, call, tmp_path
) -> None:
    other = tokenizer.train_bpe(["another vocabulary altogether " * 9], 300)
    save_new_model(tmp_path / "other", other, hidden=16, layers=1)
    line = ("evaluate", "--model", reference, "--csv", tables["validation"])
    found = call(*line, f"evaluation.reference_model={tmp_path / 'other'}")
    assert (found["code"], "another vocabulary" in found["said"]) == (78, True), found["said"]
    missing = call(*line, f"evaluation.reference_model={tmp_path / 'none'}")
    assert missing["code"] == 66, missing["said"]


HEAD = "prompt,chosen,rejected\n"
GOOD = HEAD + "".join(f"ask {number},say {number},no {number}\n" for number in range(12))


@pytest.mark.parametrize(
    ("content", "arguments", "code", "said"),
    [
        (HEAD + "a,b,c\nd,,e\n", (), 65, "t.csv row 2"),
        (HEAD + "a,b,b\nc,d,d\n", (), 65, "no row is left"),
        ("x,y\n1,2\n", (), 65, "the columns are 0 'x'"),
        ("prompt,chosen\na,b\n", (), 65, "data.rejected_column"),
        (GOOD, ("data.chosen_column=ask",), 65, "no column is called 'ask'"),
        (GOOD, ("data.max_length=4",), 65, "nothing is left"),
        (GOOD, ("data.max_length=900",), 78, "128 positions"),
        (GOOD, ("train.label_smoothing_factor=0.5",), 78, "below 0.5"),
        (GOOD, ("train.label_smoothing_factor=0.1", "train.preference_loss=ipo"), 78, "dpo"),
        (GOOD, ("train.beta=0",), 78, "train.beta"),
        (GOOD, ("rpo_alpha=1",), 78, "train.sft_weight=1"),
        (GOOD, ("loss_type=sigmoid",), 78, "train.preference_loss=dpo"),
        (GOOD, ("data.response_column=chosen",), 78, "data.response_column"),
        (GOOD, ("data.block_size=64",), 78, "data.block_size"),
        (GOOD, ("train.metric_for_best_model=perplexity",), 78, "margin"),
        (GOOD, ("model.name_or_path=null",), 78, "needs a pretrained model"),
    ],
)
def test_bad_input_is_reported_before_anything_is_written(
    base, call, tmp_path, content, arguments, code, said
) -> None:
    path, run = tmp_path / "t.csv", tmp_path / "run"
    path.write_text(content)
    line = ("finetune", "--csv", path, "--model", base, "train.objective=preference")
    result = call(*line, *arguments, "--output-dir", run)
    assert result["code"] == code, result["said"]
    assert said in result["said"]
    assert not (run / "run.json").exists()


def test_pairs_given_to_a_classifier_are_answered_with_their_objective(
    base, call, tmp_path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(GOOD)
    result = call("finetune", "--csv", path, "--model", base, "--dry-run")
    assert result["code"] == 65
    assert "train.objective=preference" in result["said"]


def test_the_page_and_the_card_say_what_was_learned(reference) -> None:
    page = (reference / "report.html").read_text()
    assert "prefers the chosen response in" in page
    assert "A model tuned on preferences" in page
    assert "The reference model" in page
    card = (reference / "final" / "README.md").read_text()
    assert "tuned on preferences" in card
    assert "| validation | accuracy |" in card
