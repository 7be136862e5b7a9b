"""`llmkit finetune train.objective=token_classification` as a user runs it, on words made here."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from seqeval.metrics import f1_score
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from llmkit.cli import app
from tests.jobs import (
    CONFIGS,
    assert_processes_agree,
    assert_same,
    finetuned,
    finetuning,
    resume_killed,
    weights,
    write_parts,
)

PEOPLE = ("Anna Berg", "Bob", "Carla van Dyk", "Dmitri")
PLACES = ("Paris", "New York", "Rio de Janeiro")
FILLING = "saw the old city and a friend near it today".split()
TAGGER = ("train.objective=token_classification",)
SMALL = (
    *TAGGER, "model.config.hidden_size=32", "model.config.num_hidden_layers=2",
    "tokenizer.vocab_size=400", "train.global_batch_size=8", "train.learning_rate=3e-3",
    "train.num_train_epochs=4", "data.max_length=24",
)  # fmt: skip


def sentences(n: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """Words with tags. `May` is a person after `met` and no entity otherwise, so that context
    matters; some sentences are longer than a window."""
    chance = random.Random(seed)
    made = []
    for number in range(n):
        words, tags = [], []
        for _ in range(40 if number % 20 == 0 else chance.randint(2, 7)):
            kind, name = chance.choice(
                [("PER", chance.choice(PEOPLE)), ("LOC", chance.choice(PLACES)), ("met", "May"),
                 ("in", "May"), ("", chance.choice(FILLING)), ("", chance.choice(FILLING))]
            )  # fmt: skip
            if name == "May":
                words.append(kind)
                tags.append("O")
                kind = "PER" if kind == "met" else ""
            words += name.split()
            tags += [f"{'I' if n else 'B'}-{kind}" if kind else "O" for n, _ in
                     enumerate(name.split())]  # fmt: skip
        words.append(str(number + 1000 * seed))
        tags.append("O")
        made.append((words, tags))
    return made


def conll(path: Path, rows: list[tuple[list[str], list[str]]]) -> Path:
    blocks = ("".join(f"{w} {t}\n" for w, t in zip(*row, strict=True)) for row in rows)
    path.write_text("\n".join(blocks))
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, Path]:
    parts = {"train": sentences(160, 0), "test": sentences(40, 1)}
    return write_parts(tmp_path_factory, "conll", conll, **parts)


@pytest.fixture(scope="module")
def reference(tables, tmp_path_factory) -> dict[str, Any]:
    """A finished run with a test file."""
    return finetuned(tmp_path_factory, finetuning(tables, *SMALL))


def test_the_tagger_learns_and_stands_beside_its_baseline(reference) -> None:
    found = reference["test"]
    assert found["f1"] > found["baseline"]["frequent_tag"]["f1"]
    assert found["f1"] > 0.9
    assert found["f1_strict"] <= found["f1"]
    assert set(found["per_class"]) == {"LOC", "PER"}
    assert found["confused"] == ["LOC", "PER", "O"]
    assert (
        found["errors"]["exact"]
        == sum(found["confusion_matrix"][n][n] for n in (0, 1))
        - (found["errors"]["wrong_boundaries"])
    )
    assert found["intervals"]["f1"][0] <= found["f1"] <= found["intervals"]["f1"][1]
    for name in ("loss.png", "confusion_matrix_validation.png", "confusion_matrix_test.png"):
        assert (reference["run"] / name).read_bytes().startswith(b"\x89PNG")
    config = (reference["run"] / "config.yaml").read_text()
    assert "metric_for_best_model: f1\n" in config
    assert "tag_scheme: bio" in config


def test_the_final_model_is_the_best_checkpoint(reference) -> None:
    lines = (reference["run"] / "metrics.jsonl").read_text().splitlines()
    figures = [record for record in map(json.loads, lines) if "validation_loss" in record]
    best = max(record["validation_f1"] for record in figures)
    found = reference["validation"]
    assert found["f1"] == pytest.approx(best)
    [same] = [r for r in figures if r["validation_f1"] == best][:1]
    for name in ("loss", "precision", "recall", "f1_strict", "f1_macro", "accuracy"):
        assert found[name] == pytest.approx(same[f"validation_{name}"], rel=1e-4), name


def test_evaluate_gives_the_figures_that_finetune_reported(call, reference, tables) -> None:
    found = call(
        "evaluate", "--model", reference["run"], "--csv", tables["test"],
        f"data.train_files={tables['train']}",
    )  # fmt: skip
    assert found["code"] == 0, found["said"]
    assert found["protocol"] == {"tag_scheme": "bio", "precision": "fp32"}
    reported = {k: v for k, v in reference["test"].items() if isinstance(v, int | float)}
    assert {"loss", "f1", "f1_strict", "precision", "recall"} <= reported.keys()
    assert {name: found[name] for name in reported} == pytest.approx(reported, rel=1e-6)
    for name in ("per_class", "confusion_matrix", "errors", "baseline"):
        assert found[name] == reference["test"][name]
    assert len(found["worst"]) <= 10
    assert all({"label", "predicted", "loss", "text", "row"} <= m.keys() for m in found["worst"])


def test_plain_transformers_gives_the_tags_of_texts_that_fit(reference, tables) -> None:
    final = reference["run"] / "final"
    model = AutoModelForTokenClassification.from_pretrained(final).eval()
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert set(model.config.label2id) == {"O", "B-LOC", "I-LOC", "B-PER", "I-PER"}
    tagged = pipeline("token-classification", str(final), aggregation_strategy="first")
    groups = {each["entity_group"] for each in tagged("saw Anna Berg near Rio de Janeiro 7")}
    assert groups == {"LOC", "PER"}
    assert tokenizer("the city", return_tensors="pt")["input_ids"].shape[0] == 1


def test_predict_gives_spans_with_offsets_that_seqeval_scores_alike(
    call, reference, tables, tmp_path
) -> None:
    output = tmp_path / "o.jsonl"
    found = call(
        "predict", "--model", reference["run"], "--csv", tables["test"], "--output", output,
        "predict.precision=fp32",
    )  # fmt: skip
    assert found["code"] == 0, found["said"]
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert found["examples"] == len(rows) == 40
    actual = sentences(40, 1)
    assert [row["tokens"] for row in rows] == [words for words, _ in actual]
    ours = f1_score([tags for _, tags in actual], [row["tags"] for row in rows])
    assert ours == pytest.approx(reference["test"]["f1"])
    for row in rows:
        assert row["text"] == " ".join(row["tokens"])
        for span in row["spans"]:
            assert span["text"] == row["text"][span["start"] : span["end"]]
            assert 0 < span["probability"] <= 1
    assert sum(found["labels"].values()) == sum(len(row["spans"]) for row in rows)
    table = tmp_path / "o.csv"
    again = call("predict", "--model", reference["run"], "--csv", tables["test"], "--output", table)
    assert again["code"] == 0, again["said"]
    head = table.read_text().splitlines()[0]
    assert head == "text,1,tags,spans,probability"


def test_predictions_can_be_trained_on_and_are_not_data_by_themselves(
    call, reference, tables, tmp_path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(" ".join(words) + "\n" for words, _ in sentences(30, 2)))
    output = tmp_path / "spans.jsonl"
    found = call("predict", "--model", reference["run"], "--csv", texts, "--output", output)
    assert found["code"] == 0, found["said"]
    report = call("finetune", "--csv", output, *SMALL, "--dry-run")
    assert report["code"] == 0, report["said"]
    assert (report["rows"], report["tag_scheme"]) == (30, "bio")
    (tmp_path / "folder").mkdir()
    output.rename(tmp_path / "folder" / "spans.jsonl")
    refused = call("finetune", "--csv", tmp_path / "folder", *SMALL, "--dry-run")
    assert refused["code"] == 66, refused["said"]


def test_lines_of_a_pipe_are_tagged(reference, trials, tmp_path) -> None:
    line = "today Bob saw New York\n"
    (tmp_path / "pipe.txt").write_text(line)
    given = {"stdin": str(tmp_path / "pipe.txt")}
    ended = trials.run("predict", "--model", str(reference["run"]), **given)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["text"] == line.strip()
    assert {span["label"] for span in found["spans"]} <= {"PER", "LOC"}


def test_a_killed_run_resumes_to_the_bit(reference, tables, call, trials, tmp_path) -> None:
    run = tmp_path / "killed"
    resume_killed(trials, call, finetuning(tables, *SMALL), run, lines=24)
    assert_same(run, reference["run"])


def test_two_processes_give_the_figures_of_one(tables, llmkit, tmp_path) -> None:
    dropout = ("model.config.mlp_dropout=0.1", "model.config.attention_dropout=0.1")
    keys = [*SMALL, "train.precision=fp32", *dropout, "train.max_steps=12"]
    line = ("finetune", "--csv", tables["train"], *keys)
    one, other = assert_processes_agree(llmkit, line, tmp_path)
    assert one["validation"]["f1"] == pytest.approx(other["validation"]["f1"])


def test_low_rank_updates_end_as_a_plain_model(reference, tables, call, tmp_path) -> None:
    pytest.importorskip("peft")
    keys = ("model.lora.r=4", "train.num_train_epochs=1", "train.global_batch_size=8", *TAGGER)
    run = tmp_path / "lora"
    result = call(
        "finetune", "--csv", tables["train"], "--model", reference["run"], *keys, "-o", run
    )
    assert result["code"] == 0, result["said"]
    before, after = weights(reference["run"]), weights(run)
    assert before.keys() == after.keys()
    embedding = "model.embeddings.tok_embeddings.weight"
    assert torch.equal(before[embedding], after[embedding])


def test_a_language_model_becomes_a_tagger_of_parts_of_speech(call, tmp_path) -> None:
    """A causal model reads each word to its end; a plain scheme has no entities."""
    kinds = {"NOUN": ["cat", "dog", "mat"], "VERB": ["saw", "ran"], "DET": ["the", "a"]}
    chance = random.Random(0)
    rows = []
    for number in range(80):
        names = chance.choices(list(kinds), k=chance.randint(2, 9))
        tokens = [*(chance.choice(kinds[name]) for name in names), str(number)]
        rows.append({"tokens": tokens, "pos_tags": [*names, "NUM"]})
    path = tmp_path / "pos.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(row["tokens"]) for row in rows))
    base = tmp_path / "base"
    made = call(
        "pretrain", "--text", text, "model.architecture=llama", "model.config.hidden_size=32",
        "model.config.num_hidden_layers=1", "tokenizer.vocab_size=300", "train.max_steps=2",
        "data.block_size=32", "train.compile=false", "generation.max_new_tokens=2", "-o", base,
    )  # fmt: skip
    assert made["code"] == 0, made["said"]
    keys = ("train.learning_rate=1e-2", "train.num_train_epochs=6", "train.global_batch_size=8")
    result = call("finetune", "--csv", path, "--model", base, *TAGGER, *keys, "-o", tmp_path / "r")
    assert result["code"] == 0, result["said"]
    assert result["validation"]["accuracy"] > 0.8
    assert {"accuracy", "f1_macro"} <= result["validation"].keys()
    assert "f1" not in result["validation"]
    assert result["words_per_second"] > 0
    config = json.loads((tmp_path / "r" / "final" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForTokenClassification"]
    assert config["llmkit"]["by_last_token"] is True
    assert config["llmkit"]["tag_scheme"] == "plain"
    found = call("evaluate", "--model", tmp_path / "r", "--csv", path)
    assert found["code"] == 0, found["said"]
    assert set(found["per_class"]) == {"NOUN", "VERB", "DET", "NUM"}


def test_the_roles_of_a_marked_predicate_are_learned(call, tmp_path) -> None:
    """Which of two verbs is marked decides what is tagged."""
    chance, rows = random.Random(0), []
    for number in range(120):
        first, second = chance.sample(["cat", "dog", "fox", "hen"], 2)
        tokens = [first, "saw", second, "ran", str(number)]
        for mark, role in ((1, 2), (3, 0)):
            tags = ["O"] * 5
            tags[mark], tags[role] = "B-V", "B-ARG"
            rows.append({"tokens": tokens, "tags": tags, "predicate": mark})
    path = tmp_path / "roles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    result = call("finetune", "--csv", path, *SMALL, "train.num_train_epochs=8", "-o", run)
    assert result["code"] == 0, result["said"]
    assert result["validation"]["f1"] > 0.9
    assert result["baseline"]["frequent_tag"]["f1"] < 0.7
    output = tmp_path / "o.jsonl"
    found = call("predict", "--model", run, "--csv", path, "--output", output)
    assert found["code"] == 0, found["said"]
    first = json.loads(output.read_text().splitlines()[0])
    assert first["text"] == " ".join(rows[0]["tokens"])
    assert first["columns"]["predicate"] == 1


def test_a_dry_run_reports_the_data_and_writes_nothing(call, tables, tmp_path) -> None:
    run = tmp_path / "run"
    report = call("finetune", "--csv", tables["train"], *SMALL, "--dry-run", "-o", run)
    assert report["code"] == 0, report["said"]
    assert (report["rows"], report["tag_scheme"]) == (160, "bio")
    assert report["classes"].keys() == {"LOC", "PER"}
    lengths = report["lengths"]["train"]
    assert lengths["windows"] > report["splits"]["train"]["rows"]
    assert lengths["words_without_token"] == 0
    assert not run.exists()


def test_a_plain_dry_run_shows_tables(tables, capsys) -> None:
    assert app.run_command(["finetune", "--csv", str(tables["train"]), *SMALL, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for word in ("PER", "windows", "words", "bio"):
        assert word in shown


GOOD = "".join(f"{n} O\nBob B-PER\nb O\n\n" for n in range(5))


@pytest.mark.parametrize(
    ("content", "arguments", "code", "said"),
    [
        (GOOD + "x O\ny I-PER\n", (), 65, "bad.conll:22"),
        (GOOD + "x\n", (), 65, "this line has 1 columns"),
        ("a O\n\nb O\n", (), 65, "nothing to learn"),
        (GOOD, ("train.metric_for_best_model=matthews",), 78, "f1"),
        (GOOD, ("train.metric_for_best_model=mse",), 78, "f1"),
        (GOOD, ("data.problem_type=regression",), 78, "finetune (classification)"),
        (GOOD, ("data.label_separator=,",), 78, "finetune (classification)"),
        (GOOD, ("data.max_length=9", "model.name_or_path=none/x/y"), 66, ""),
    ],
)
def test_bad_input_is_reported_before_anything_is_written(
    call, tmp_path, content, arguments, code, said
) -> None:
    path = tmp_path / "bad.conll"
    path.write_text(content)
    run = tmp_path / "run"
    result = call("finetune", "--csv", path, *SMALL[:4], *arguments, "--output-dir", run)
    assert result["code"] == code, result["said"]
    assert said in result["said"]
    assert not (run / "run.json").exists()


def test_a_classifier_refuses_tagged_words_with_the_objective_to_set(call, tmp_path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(GOOD)
    for keys in ((), ("data.format=conll",)):
        result = call("finetune", "--csv", path, *keys)
        assert result["code"] in (65, 78), result["said"]
        assert "train.objective=token_classification" in result["said"]
    rows = tmp_path / "a.jsonl"
    rows.write_text('{"tokens": ["a"], "tags": ["O"]}\n' * 9)
    result = call("finetune", "--csv", rows)
    assert result["code"] == 65
    assert "train.objective=token_classification" in result["said"]


def test_the_starter_config_trains(call, tables, tmp_path) -> None:
    config, run = CONFIGS / "finetune-tagging.yaml", tmp_path / "run"
    keys = (*SMALL[1:4], "train.max_steps=1", "train.num_train_epochs=null")
    result = call("finetune", config, "--csv", tables["train"], *keys, "-o", run)
    assert result["code"] == 0, result["said"]
    assert "f1" in result["validation"]
