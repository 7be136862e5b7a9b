"""`llmkit finetune train.objective=question_answering` as a user runs it, on contexts made here."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from llmkit.cli import app
from tests.jobs import (
    CONFIGS,
    assert_held_out_agrees,
    assert_processes_agree,
    assert_same,
    finetuned,
    finetuning,
    resume_killed,
    weights,
    write_parts,
)

PLACES, FOODS = ("Paris", "New York", "Oslo"), ("bread", "green tea", "rice")
FILLING = "the old city was quiet and many people walked near it today".split()
ANSWERS = ("train.objective=question_answering",)
SMALL = (
    *ANSWERS, "model.config.hidden_size=48", "model.config.num_hidden_layers=3",
    "tokenizer.vocab_size=330", "train.global_batch_size=8", "train.learning_rate=2e-3",
    "train.num_train_epochs=12", "data.max_length=40",
)  # fmt: skip


def questions(n: int, seed: int) -> list[dict[str, Any]]:
    """Where Bob lives, what he eats, and what his context does not tell. Some contexts are longer
    than a window."""
    chance, made = random.Random(seed), []
    for number in range(n):
        place, food = chance.choice(PLACES), chance.choice(FOODS)
        known = ["place", "food"] if number % 3 else [chance.choice(["place", "food"])]
        facts = {"place": f"Bob lives in {place}.", "food": f"Bob eats {food}."}
        rest = " ".join(chance.choices(FILLING, k=40 if number % 10 == 0 else 4)) + f" {number}."
        parts = [*(facts[each] for each in known), rest]
        chance.shuffle(parts)
        context = " ".join(parts)
        asked = "Where does Bob live?", "What does Bob eat?"
        for kind, text, question in zip(("place", "food"), (place, food), asked, strict=True):
            found = {"text": [], "answer_start": []}
            if kind in known:
                found = {"text": [text], "answer_start": [context.index(text)]}
            made.append({"question": question, "context": context, "answers": found})
    return made


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, Path]:
    parts = {"train": questions(120, 0), "test": questions(30, 1)}
    return write_parts(tmp_path_factory, "jsonl", jsonl, **parts)


@pytest.fixture(scope="module")
def reference(tables, tmp_path_factory) -> dict[str, Any]:
    """A finished run with a test file."""
    return finetuned(tmp_path_factory, finetuning(tables, *SMALL))


def test_the_model_learns_and_stands_beside_its_baselines(reference) -> None:
    found = reference["test"]
    assert found["f1"] > 0.8
    assert found["f1"] > max(each["f1"] for each in found["baseline"].values())
    assert set(found["baseline"]) == {"nearest_sentence", "no_answer"}
    assert found["exact_match"] <= found["f1"]
    assert found["intervals"]["f1"][0] <= found["f1"] <= found["intervals"]["f1"][1]
    assert_held_out_agrees(reference["run"])
    card = (reference["run"] / "final" / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card
    page = (reference["run"] / "report.html").read_text()
    assert "answers questions" in page


def test_the_threshold_is_that_of_the_validation_data_and_not_of_the_test(reference) -> None:
    config = json.loads((reference["run"] / "final" / "config.json").read_text())
    chosen = config["llmkit"]["no_answer_threshold"]
    assert reference["validation"]["no_answer_threshold"] == chosen
    assert reference["test"]["no_answer_threshold"] == chosen
    lines = (reference["run"] / "metrics.jsonl").read_text().splitlines()
    best = max(each["validation_f1"] for each in map(json.loads, lines) if "validation_f1" in each)
    assert reference["validation"]["f1"] == pytest.approx(best)


def test_evaluate_gives_the_figures_that_finetune_reported(call, reference, tables) -> None:
    found = call("evaluate", "--model", reference["run"], "--csv", tables["test"])
    assert found["code"] == 0, found["said"]
    reported = {k: v for k, v in reference["test"].items() if isinstance(v, int | float)}
    assert {"loss", "f1", "exact_match", "f1_unanswered"} <= reported.keys()
    assert {name: found[name] for name in reported} == pytest.approx(reported, rel=1e-6)
    assert all({"label", "predicted", "text", "row"} <= m.keys() for m in found["worst"])
    twice = call("evaluate", "--model", reference["run"], "--csv", tables["test"],
                 f"evaluation.compare_with=[{reference['run']}]")  # fmt: skip
    assert twice["comparisons"][0]["f1_difference"] == 0


def test_predict_gives_answers_with_offsets_that_score_alike(
    call, reference, tables, tmp_path
) -> None:
    output = tmp_path / "o.jsonl"
    found = call("predict", "--model", reference["run"], "--csv", tables["test"], "--output",
                 output, "predict.precision=fp32")  # fmt: skip
    assert found["code"] == 0, found["said"]
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    asked = questions(30, 1)
    assert [row["question"] for row in rows] == [each["question"] for each in asked]
    exact = 0
    for row, each in zip(rows, asked, strict=True):
        if row["answer"]:
            assert row["context"][row["start"] : row["end"]] == row["answer"]
        assert 0 < row["probability"] <= 1
        exact += row["answer"] == "".join(each["answers"]["text"])
    assert exact / len(rows) == pytest.approx(reference["test"]["exact_match"])
    assert sum(found["labels"].values()) == len(rows)
    table = tmp_path / "o.csv"
    again = call("predict", "--model", reference["run"], "--csv", tables["test"], "--output", table)
    assert again["code"] == 0, again["said"]
    head = table.read_text().splitlines()[0]
    assert head == "question,context,answers,answer,start,end,probability"


def test_questions_in_a_pipe_are_answered(reference, trials, tmp_path) -> None:
    line = json.dumps({"question": "Where does Bob live?", "context": "Bob lives in Oslo."})
    (tmp_path / "pipe.jsonl").write_text(line + "\n")
    given = {"stdin": str(tmp_path / "pipe.jsonl")}
    ended = trials.run("predict", "--model", str(reference["run"]), **given)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["context"] == "Bob lives in Oslo."


def test_plain_transformers_loads_the_model(reference) -> None:
    model = AutoModelForQuestionAnswering.from_pretrained(reference["run"] / "final")
    saved = weights(reference["run"])
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(saved[name], each) for name, each in model.state_dict().items())


@pytest.mark.slow
def test_a_killed_run_continues_to_the_bit(reference, tables, call, trials, tmp_path) -> None:
    run = tmp_path / "killed"
    resume_killed(trials, call, finetuning(tables, *SMALL), run)
    assert_same(run, reference["run"])


def test_two_processes_give_the_figures_of_one(tables, llmkit, tmp_path) -> None:
    keys = (*SMALL, "train.precision=fp32", "model.config.mlp_dropout=0.1", "train.max_steps=8")
    assert_processes_agree(llmkit, ("finetune", "--csv", tables["train"], *keys), tmp_path)


def test_low_rank_updates_end_as_a_plain_model(reference, tables, call, tmp_path) -> None:
    pytest.importorskip("peft")
    keys = ("model.lora.r=4", "train.max_steps=5", "train.global_batch_size=8", *ANSWERS)
    run = tmp_path / "lora"
    result = call(
        "finetune", "--csv", tables["train"], "--model", reference["run"], *keys, "-o", run
    )
    assert result["code"] == 0, result["said"]
    before, after = weights(reference["run"]), weights(run)
    assert before.keys() == after.keys()
    config = json.loads((run / "final" / "config.json").read_text())
    assert "no_answer_threshold" in config["llmkit"]


def test_training_stops_when_f1_no_longer_rises(tables, call, tmp_path) -> None:
    keys = ("train.early_stopping_patience=1", "train.learning_rate=1e-7", "train.eval_steps=2")
    run = tmp_path / "run"
    result = call("finetune", "--csv", tables["train"], *SMALL, *keys, "-o", run)
    assert result["code"] == 0, result["said"]
    assert result["step"] < 20


def test_a_plain_dry_run_shows_the_data(tables, capsys, tmp_path) -> None:
    run = ("--dry-run", "-o", str(tmp_path / "run"))
    assert app.run_command(["finetune", "--csv", str(tables["train"]), *SMALL, *run]) == 0
    shown = capsys.readouterr().out
    for word in ("answered", "unanswered", "windows", "contexts"):
        assert word in shown
    assert not (tmp_path / "run").exists()


GOOD = [{"question": "Who?", "context": f"Bob {n}.", "answers": {"text": ["Bob"]}}
        for n in range(9)]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "arguments", "code", "said"),
    [
        ([*GOOD, {**GOOD[0], "answers": {"text": ["Eve"]}}], (), 65, "'Eve' is not in its context"),
        ([{"text": "a", "label": "b"}], (), 65, "the question and the context"),
        (GOOD, ("train.metric_for_best_model=accuracy",), 78, "f1"),
        (GOOD, ("model.architecture=llama",), 78, "reads only forward"),
        (GOOD, ("data.label_separator=,",), 78, "finetune (classification)"),
    ],
)
def test_bad_input_is_reported_before_anything_is_written(
    call, tmp_path, rows, arguments, code, said
) -> None:
    path, run = jsonl(tmp_path / "bad.jsonl", rows), tmp_path / "run"
    result = call("finetune", "--csv", path, *ANSWERS, *arguments, "-o", run)
    assert result["code"] == code, result["said"]
    assert said in result["said"]
    assert not run.exists()


@pytest.mark.slow
def test_the_answers_of_an_onnx_model_are_those_of_predict(
    call, reference, tables, tmp_path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = tmp_path / "made"
    found = call("export", "--model", reference["run"], "--format", "onnx", "--output", made)
    assert found["code"] == 0, found["said"]
    assert found["outputs"] == ["start_logits", "end_logits"]
    assert found["verified"]["fp32"]["same_largest_output"] == 1.0
    output = tmp_path / "o.jsonl"
    call("predict", "--model", reference["run"], "--csv", tables["test"], "--output", output,
         "predict.precision=fp32")  # fmt: skip
    from llmkit.export.onnx.checking import open_onnx

    session, own = open_onnx(made / "model.onnx"), AutoTokenizer.from_pretrained(made)
    facts = session.get_modelmeta().custom_metadata_map
    threshold, longest = float(facts["no_answer_threshold"]), int(facts["longest_answer"])
    short = [row for row in map(json.loads, output.open()) if len(row["context"].split()) < 20]
    assert len(short) > 40
    for row in short:
        given = own(row["question"], row["context"], return_offsets_mapping=True)
        inputs = {name: np.array([given[name]]) for name in found["inputs"]}
        first, last = (each[0] for each in session.run(None, inputs))
        context = [n for n, part in enumerate(given.sequence_ids()) if part == 1]
        score, a, b = max((first[a] + last[b], a, b) for a in context for b in context
                          if 0 <= b - a < longest)  # fmt: skip
        offsets = given["offset_mapping"]
        answer = row["context"][offsets[a][0] : offsets[b][1]].strip()
        is_none = first[0] + last[0] - score > threshold
        assert row["answer"] == ("" if is_none else answer)


def test_the_starter_config_trains(call, tables, tmp_path) -> None:
    config, run = CONFIGS / "finetune-questions.yaml", tmp_path / "run"
    result = call("finetune", config, "--csv", tables["train"], *SMALL, "train.max_steps=3", "-o",
                  run)  # fmt: skip
    assert result["code"] == 0, result["said"]
    assert {"f1", "exact_match"} <= result["validation"].keys()
