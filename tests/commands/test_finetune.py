"""`llmkit finetune` as a user runs it, on small tables made here."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llmkit.cli import app
from tests.jobs import (
    SHARED,
    assert_choices_explained,
    assert_held_out_agrees,
    assert_processes_agree,
    assert_resumes_to_the_bit,
    assert_same,
    finetuned,
    finetuning,
    needs_shared,
    resume_killed,
    weights,
    write_parts,
    write_table,
)

SIGNS = {"weather": ["rain", "sun", "wind"], "food": ["bread", "tea"], "pets": ["cat", "dog"]}
FILLING = ("the", "a", "and", "we", "saw", "it", "was", "very", "so", "then", "today", "here")
SMALL = (
    "model.config.hidden_size=32", "model.config.num_hidden_layers=2", "tokenizer.vocab_size=300",
    "train.global_batch_size=8", "train.learning_rate=3e-3", "train.num_train_epochs=6",
)  # fmt: skip


def rows(n: int, seed: int) -> list[tuple[str, str]]:
    chance = random.Random(seed)
    made = []
    for number in range(n):
        label = list(SIGNS)[number % len(SIGNS)]
        words = [*chance.choices(FILLING, k=chance.randint(1, 9)), chance.choice(SIGNS[label])]
        chance.shuffle(words)
        made.append((" ".join(words) + f" {number}", label))
    return made


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, Path]:
    return write_parts(tmp_path_factory, "csv", write_table, train=rows(160, 0), test=rows(40, 1))


@pytest.fixture(scope="module")
def reference(tables, tmp_path_factory) -> dict[str, Any]:
    """A finished run with a test file."""
    return finetuned(tmp_path_factory, finetuning(tables, *SMALL))


def test_stdout_holds_the_contracts_json_and_nothing_else(call, tables, tmp_path) -> None:
    files = ("--csv", tables["train"], f"data.test_files={tables['test']}")
    result = call("finetune", *files, *SMALL, "train.max_steps=4", "--output-dir", tmp_path / "r")
    assert result["code"] == 0, result["said"]
    assert result["command"] == "finetune"
    assert result["step"] == 4
    assert result["examples_per_second"] > 0
    assert {"loss", "accuracy", "f1_macro"} <= result["validation"].keys()
    assert {"loss", "accuracy", "f1_macro", "f1_weighted"} <= result["test"].keys()
    assert {"majority", "tfidf"} == result["baseline"].keys() == result["test"]["baseline"].keys()
    assert Path(result["model_dir"]) == tmp_path / "r" / "final"


def test_a_run_without_a_name_has_all_its_files_in_one_directory(
    call, tables, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("finetune", "--csv", tables["train"], *SMALL, "train.max_steps=2")
    assert result["code"] == 0, result["said"]
    [run] = (tmp_path / "runs").iterdir()
    assert Path(result["run_dir"]).resolve() == run
    assert {"final", "evaluation.json", "confusion_matrix_validation.png"} <= {
        path.name for path in run.iterdir()
    }


def test_rows_cut_by_position_train_the_model_of_files_cut_by_hand(call, tmp_path) -> None:
    table = rows(120, 0)
    whole = write_table(tmp_path / "rows.csv", table)
    parts = {"train": table[:80], "validation": table[80:100], "test": table[100:]}
    files = {name: write_table(tmp_path / f"{name}.csv", part) for name, part in parts.items()}
    short = (*SMALL, "train.max_steps=6")
    by_hand = [f"data.{name}_files={path}" for name, path in files.items()]
    by_rows = ["--csv", whole, "data.train_rows=:80", "data.validation_rows=80:-20",
               "data.test_rows=100:"]  # fmt: skip
    one = call("finetune", *by_hand, *short, "--output-dir", tmp_path / "a")
    two = call("finetune", *by_rows, *short, "--output-dir", tmp_path / "b")
    assert one["code"] == two["code"] == 0, two["said"]
    assert_same(tmp_path / "a", tmp_path / "b")
    assert one["test"]["loss"] == two["test"]["loss"]
    again = call("finetune", "--csv", whole, "data.train_rows=:80", "data.validation_rows=80:100",
                 "data.test_rows=110:", *short, "--output-dir", tmp_path / "b")  # fmt: skip
    assert again["code"] == 78
    assert "test_rows" in again["said"]


def test_evaluate_gives_the_figures_that_finetune_reported(call, reference, tables) -> None:
    found = call("evaluate", "--model", reference["run"], "--csv", tables["test"])
    assert found["code"] == 0, found["said"]
    assert found["protocol"]["precision"] == "fp32"
    reported = {k: v for k, v in reference["test"].items() if isinstance(v, int | float)}
    assert {"loss", "accuracy", "f1_macro"} <= reported.keys()
    assert {name: found[name] for name in reported} == pytest.approx(reported, rel=1e-6)
    assert found["confusion_matrix"] == reference["test"]["confusion_matrix"]


def test_the_classifier_learns_and_stands_beside_its_baselines(reference) -> None:
    assert reference["test"]["accuracy"] > 0.9
    assert reference["test"]["baseline"]["tfidf"]["accuracy"] > 0.9
    assert reference["test"]["baseline"]["majority"]["accuracy"] < 0.5
    assert set(reference["test"]["per_class"]) == set(SIGNS)
    assert np.sum(reference["test"]["confusion_matrix"]) == 40
    for name in ("loss.png", "confusion_matrix_validation.png", "confusion_matrix_test.png"):
        assert (reference["run"] / name).read_bytes().startswith(b"\x89PNG")


def test_plain_transformers_gives_the_figures_of_the_saved_model(reference, tables) -> None:
    final = reference["run"] / "final"
    model = AutoModelForSequenceClassification.from_pretrained(final).eval()
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert model.config.problem_type == "single_label_classification"
    hits, loss = [], []
    with tables["test"].open() as file:
        for row in csv.DictReader(file):
            with torch.no_grad():
                logits = model(**tokenizer(row["text"], return_tensors="pt")).logits[0]
            loss.append(-logits.log_softmax(0)[model.config.label2id[row["label"]]].item())
            hits.append(model.config.id2label[int(logits.argmax())] == row["label"])
    assert np.mean(hits) == pytest.approx(reference["test"]["accuracy"])
    assert np.mean(loss) == pytest.approx(reference["test"]["loss"], rel=1e-5)


def test_the_final_model_is_the_best_checkpoint(reference) -> None:
    lines = (reference["run"] / "metrics.jsonl").read_text().splitlines()
    figures = [record for record in map(json.loads, lines) if "validation_loss" in record]
    assert [record["step"] for record in figures] == [19, 38, 57, 76, 95, 109]  # 145 rows
    best = max(figures, key=lambda record: record["validation_f1_macro"])
    assert reference["validation"]["f1_macro"] == pytest.approx(best["validation_f1_macro"])
    assert reference["validation"]["loss"] == pytest.approx(best["validation_loss"], rel=1e-4)


def test_a_killed_run_resumes_to_the_bit(reference, tables, call, trials, tmp_path) -> None:
    run = tmp_path / "killed"
    resume_killed(trials, call, finetuning(tables, *SMALL), run)
    assert_same(run, reference["run"])


def test_low_rank_updates_resume_to_the_bit_and_end_as_a_plain_model(
    reference, tables, call, tmp_path
) -> None:
    pytest.importorskip("peft")
    line = (
        "finetune", "--csv", tables["train"], "--model", reference["run"],
        "model.lora.r=4", "train.num_train_epochs=2", "train.global_batch_size=8",
        "train.save_steps=7", "train.load_best_model_at_end=false",
    )  # fmt: skip
    run, _ = assert_resumes_to_the_bit(call, line, tmp_path)
    names = {path.name for path in (run / "final").iterdir()}
    assert "lora.safetensors" not in names
    assert not any("lora" in name for name in weights(run))
    before = weights(reference["run"])
    assert torch.equal(
        before["model.embeddings.tok_embeddings.weight"],
        weights(run)["model.embeddings.tok_embeddings.weight"],
    )


def test_two_processes_give_the_figures_of_one(tables, llmkit, tmp_path) -> None:
    dropout = ("model.config.mlp_dropout=0.1", "model.config.attention_dropout=0.1")
    keys = [*SMALL, "train.precision=fp32", *dropout, "train.max_steps=12"]
    line = ("finetune", "--csv", tables["train"], *keys)
    one, other = assert_processes_agree(llmkit, line, tmp_path)
    assert one["validation"]["accuracy"] == pytest.approx(other["validation"]["accuracy"])


TOPICS = [[f"{topic}{c}{v}" for c in "bdfgklmnprst" for v in "aeio"] for topic in ("za", "qu")]


def topical(n: int, words: int, seed: int) -> list[tuple[str, str]]:
    """Texts of words that keep company; only the first `words` of each topic."""
    chance = random.Random(seed)
    return [
        (" ".join(chance.choices(TOPICS[k % 2][:words], k=12)), f"topic{k % 2}") for k in range(n)
    ]


@pytest.mark.slow
def test_pretraining_on_texts_without_labels_beats_random_weights(call, tmp_path) -> None:
    chance, spelled = random.Random(0), {}
    for words in TOPICS:
        for word in words:  # spelling tells nothing: only company does
            spelled[word] = "".join(chance.choices("abcdefghijklmnop", k=5))
    spell = lambda table: [  # noqa: E731
        (" ".join(spelled[word] for word in text.split()), label) for text, label in table
    ]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(text for text, _ in spell(topical(1500, 48, 1))))
    train = write_table(tmp_path / "train.csv", spell(topical(40, 6, 2)))
    test = write_table(tmp_path / "test.csv", spell(topical(100, 48, 3)))
    shape = (
        "model.architecture=llama", "model.config.hidden_size=64",
        "model.config.num_hidden_layers=2", "model.config.num_attention_heads=2",
    )  # fmt: skip
    pretrained = tmp_path / "pretrained"
    done = call(
        "pretrain", "--text", corpus, "data.document=line", "tokenizer.vocab_size=600",
        "data.block_size=64", *shape, "train.max_steps=150", "train.global_batch_size=16",
        "train.compile=false", "generation.max_new_tokens=2", "--output-dir", pretrained,
    )  # fmt: skip
    assert done["code"] == 0, done["said"]
    keys = ("train.max_steps=40", "train.global_batch_size=8", "train.learning_rate=1e-3")
    files = ("--csv", train, f"data.test_files={test}", *keys)
    accuracy = {}
    for name, begin in (
        ("pretrained", ("--model", pretrained)),
        ("random", (*shape, f"tokenizer.name_or_path={pretrained / 'final'}")),
    ):
        result = call("finetune", *files, *begin, "--output-dir", tmp_path / f"from-{name}")
        assert result["code"] == 0, result["said"]
        accuracy[name] = result["test"]["accuracy"]
    assert accuracy["pretrained"] > accuracy["random"] + 0.1, accuracy


def test_a_dry_run_reports_the_data_and_writes_nothing(call, tables, tmp_path) -> None:
    run = tmp_path / "run"
    files = ("--csv", tables["train"], f"data.test_files={tables['test']}")
    report = call("finetune", *files, *SMALL, "--dry-run", "--output-dir", run)
    assert report["code"] == 0, report["said"]
    assert report["rows"] == 160
    assert report["classes"] == {"food": 53, "pets": 53, "weather": 54}
    for name in ("duplicates", "blank", "conflicts", "overlap", "unseen_labels"):
        assert report[name]["count"] == 0
    assert report["lengths"]["train"]["percentiles"].keys() == {"50", "90", "95", "99", "100"}
    assert report["lengths"]["train"]["truncated_share"] == 0.0
    assert not run.exists()


def test_a_dry_run_of_one_text_per_label_is_refused_as_bad_data(call, tmp_path) -> None:
    (tmp_path / "one.csv").write_text("text,label\nred apple,a\nblue sky,b\n")
    allowed = ("--csv", tmp_path / "one.csv", "data.allow=[one_row_classes]")
    report = call("finetune", *allowed, *SMALL, "--dry-run")
    assert report["code"] == 65, report["said"]


def test_a_plain_dry_run_shows_tables(tables, capsys) -> None:
    assert app.run_command(["finetune", "--csv", str(tables["train"]), *SMALL, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "pets" in shown
    assert "duplicates" in shown


TEXT = "text,label\n"
GOOD = TEXT + "".join(f"text {number},{'ab'[number % 2]}\n" for number in range(20))


@pytest.mark.parametrize(
    ("content", "arguments", "code", "said"),
    [
        ("", (), 66, "holds no text"),
        (TEXT + "one,a\ntwo,a\n", (), 65, "every row"),
        (TEXT + "one,a\ntwo,b\nthree,a\nfour,a\n", (), 65, "one text only"),
        (TEXT + "one,a\ntwo,b,c\n", (), 65, "row 2"),
        ("x,y,z\n1,2,3\n4,5,6\n", (), 65, "the columns are 0 'x'"),
        (GOOD, ("model.lora.alpha=4",), 78, "needs a rank"),
        (GOOD, ("train.freeze=body",), 78, "random weights"),
        (GOOD, ("data.max_length=9", "model.name_or_path=none/x/y"), 66, ""),
        (GOOD, ("train.metric_for_best_model=mse",), 78, "accuracy"),
        (
            GOOD.replace("a\n", "1.5\n").replace("b\n", "2.5\n"),
            ("train.class_weights=balanced",),
            78,
            "no classes",
        ),
        (GOOD, ("model.config.hidden_sz=8",), 78, "hidden_size"),
        ("prompt,response\n" + "a,b\n" * 9, [], 65, "train.objective=completion reads prompts"),
    ],
)
def test_bad_input_is_reported_before_anything_is_written(
    call, tmp_path, content, arguments, code, said
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    run = tmp_path / "run"
    result = call("finetune", "--csv", path, *arguments, "--output-dir", run)
    assert result["code"] == code, result["said"]
    assert said in result["said"]
    assert not (run / "run.json").exists()


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ([(text, f"{label}|long") for text, label in rows(40, 3)], "multi_label_classification"),
        ([(text, str(len(text) / 7)) for text, _ in rows(40, 3)], "regression"),
    ],
)
def test_several_labels_and_numbers_are_learned_too(call, tmp_path, table, problem) -> None:
    path = write_table(tmp_path / "table.csv", table)
    keys = ["data.label_separator='|'"] if problem.startswith("multi") else []
    result = call(
        "finetune", "--csv", path, *SMALL, "train.max_steps=4", *keys,
        f"data.test_files={path}", "--output-dir", tmp_path / "run",
    )  # fmt: skip
    assert result["code"] == 0, result["said"]
    wanted = {"pearson", "spearman", "mae"} if problem == "regression" else {"f1_micro", "accuracy"}
    assert wanted <= result["test"].keys()
    model = AutoModelForSequenceClassification.from_pretrained(result["model_dir"])
    assert model.config.problem_type == problem
    found = call(
        "predict", "--model", tmp_path / "run", "--csv", path, "--output", tmp_path / "o.csv"
    )
    assert found["code"] == 0, found["said"]


def test_numbers_far_from_zero_are_learned_and_come_out_in_their_own_unit(call, tmp_path) -> None:
    price = {"weather": 1000.0, "food": 2000.0, "pets": 4000.0}
    table = [(text, f"{price[label] + 0.5}") for text, label in rows(160, 5)]
    path = write_table(tmp_path / "table.csv", table)
    result = call("finetune", "--csv", path, *SMALL, "--output-dir", tmp_path / "run")
    assert result["code"] == 0, result["said"]
    constant = result["baseline"]["majority"]["mse"]
    assert result["validation"]["mse"] < 0.25 * constant
    model = AutoModelForSequenceClassification.from_pretrained(result["model_dir"])
    tokenizer = AutoTokenizer.from_pretrained(result["model_dir"])
    with torch.no_grad():
        for word, expected in (("rain", 1000), ("cat", 4000)):
            found = model(**tokenizer(f"we saw the {word} today 3", return_tensors="pt")).logits
            assert abs(float(found) - expected) < 1000


def test_a_classifier_that_learned_nothing_is_said_to_have_learned_nothing(call, tmp_path) -> None:
    path = write_table(tmp_path / "table.csv", rows(160, 6))
    keys = ("train.max_steps=1",)
    result = call("finetune", "--csv", path, *SMALL, *keys, "--output-dir", tmp_path / "run")
    assert result["code"] == 0, result["said"]
    assert any("validation: accuracy" in text for text in result["warnings"])


def test_pairs_of_texts_are_read_as_pairs(call, tmp_path) -> None:
    path = tmp_path / "pairs.csv"
    lines = [f"{text},{text if k % 2 else 'no'},{k % 2}" for k, (text, _) in enumerate(rows(40, 4))]
    path.write_text("\n".join(["premise,hypothesis,label", *lines]))
    run = tmp_path / "run"
    result = call("finetune", "--csv", path, *SMALL, "train.max_steps=2", "--output-dir", run)
    assert result["code"] == 0, result["said"]
    found = call("predict", "--model", run, "--csv", path, "--output", tmp_path / "o.jsonl")
    first = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])
    assert found["examples"] == 40
    assert len(first["text"]) == 2


@needs_shared
@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (("sms_spam/spam_latin1.csv", "data.encoding=latin-1", "data.text_column=v2",
          "data.label_column=v1"), {"ham": 4825, "spam": 747}),
        (("sms_spam/spam_utf8.csv", "data.text_column=masseges"), {"ham": 4825, "spam": 747}),
        (("sms_spam/sms.tsv",), {"ham": 4827, "spam": 747}),
    ],
)  # fmt: skip
def test_the_quirks_of_sms_spam_are_read(call, files, classes) -> None:
    path, *keys = files
    report = call("finetune", "--csv", SHARED / "classify" / path, *keys, *SMALL, "--dry-run")
    assert report["code"] == 0, report["said"]
    assert report["classes"] == classes


@needs_shared
def test_the_bad_byte_of_trec_is_named(call) -> None:
    report = call("finetune", "--csv", SHARED / "classify/trec/TREC.train.all", *SMALL, "--dry-run")
    assert report["code"] == 65
    assert "0xf0" in report["said"]
    assert "3173" in report["said"].replace(",", "")


def test_rows_that_a_run_was_trained_on_are_counted(call, reference, tables) -> None:
    found = call("evaluate", "--model", reference["run"], "--csv", tables["train"])
    learned = found["examples"] - reference["validation"]["examples"]
    [warning] = [each for each in found["warnings"] if "was trained on" in each]
    assert f"{learned} of these {found['examples']} rows" in warning
    apart, held_out = found["not_trained_on"], reference["validation"]
    assert apart["examples"] == held_out["examples"]
    for name in ("accuracy", "f1_macro", "matthews"):
        assert apart[name] == pytest.approx(held_out[name])
    assert f"the {apart['examples']} rows that it was not trained on: accuracy" in warning
    found = call("evaluate", "--model", reference["run"], "--csv", tables["test"])
    assert not [each for each in found["warnings"] if "was trained on" in each]


def test_what_became_of_each_row_adds_up_to_the_figures(reference) -> None:
    found = assert_held_out_agrees(reference["run"])
    assert len(found) == reference["validation"]["examples"]


def test_every_choice_of_auto_has_its_reason(reference) -> None:
    assert_choices_explained(reference["run"])
