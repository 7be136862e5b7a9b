"""`llmkit evaluate` as a user runs it."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
)

from llmkit.cli.app import run_command
from tests.jobs import CONFIGS, SHARED, tiny

FP32 = "evaluation.precision=fp32"


@pytest.fixture(scope="module")
def trained(llmkit, corpus, tmp_path_factory) -> Path:
    """A run on documents of one line, held-out lines from a file of their own."""
    directory = tmp_path_factory.mktemp("trained")
    held_out = directory / "held-out.txt"
    held_out.write_text("".join(f"{line}\n" for line in corpus.read_text().splitlines()[:9]))
    done = llmkit("pretrain", "--text", corpus, f"data.validation_files={held_out}",
                  "data.document=line", *tiny("data.block_size=16"), "train.max_steps=8",
                  "--output-dir", directory / "run", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (directory / "result.json").write_text(done.stdout)
    return directory


@pytest.fixture
def evaluate(capsys) -> Callable[..., Any]:
    """Runs the command in this process: its JSON, or with a fault its exit code and message."""

    def call(*arguments: object, json_output: bool = True) -> Any:
        flags = ["--json"] if json_output else []
        code = run_command(["evaluate", *map(str, arguments), *flags])
        said = capsys.readouterr()
        if code:
            return code, said.err
        return json.loads(said.out) if json_output else said.out

    return call


def bert(directory: Path, tokenizer_of: Path, **labels: Any) -> Path:
    """A small masked model, or with labels a classifier, with a trained tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=160, pad_token_id=0, **labels,
    )  # fmt: skip
    kind = BertForSequenceClassification if labels else BertForMaskedLM
    kind(shape).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def classifier(trained) -> Path:
    names = {0: "ham", 1: "spam"}
    return bert(trained / "classifier", trained / "run" / "final", id2label=names,
                label2id={name: id for id, name in names.items()},
                problem_type="single_label_classification")  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    chance = random.Random(1)
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    lines = [f"the cat {n},{chance.choice(('ham', 'spam'))}" for n in range(30)]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("answers") / "answers.csv"
    path.write_text(
        "prompt,prediction,reference\nthe cat,sat on a mat,sat on the mat\na dog,ran,ran away\n"
    )
    return path


def test_a_run_gets_the_validation_loss_that_it_reported(trained, evaluate) -> None:
    reported = json.loads((trained / "result.json").read_text())["validation"]
    found = evaluate("--model", trained / "run", "--text", trained / "held-out.txt",
                     "data.document=line")  # fmt: skip
    assert found["protocol"]["precision"] == "fp32"
    assert found["perplexity"] == pytest.approx(reported["perplexity"], rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(reported["bits_per_byte"], rel=1e-6)


def test_the_contracts_figures_are_there_and_the_protocol_is_stated(trained, evaluate) -> None:
    found = evaluate("--model", trained / "run", "--text", trained / "held-out.txt")
    assert set(found) >= {
        "tokens", "bytes", "nll", "perplexity", "bits_per_byte", "protocol", "interval", "baseline",
    }  # fmt: skip
    assert set(found["protocol"]) >= {"window", "stride", "scored", "bos", "documents", "precision"}
    assert found["protocol"]["window"] == 16


def test_one_process_and_two_give_the_same_figures(llmkit, trained) -> None:
    command = ("evaluate", "--model", trained / "run", "--text", trained / "held-out.txt",
               "data.document=line", "evaluation.documents=separate", "evaluation.window=11",
               "evaluation.stride=5", FP32, "evaluation.batch_tokens=50", "--by-document",
               "--json")  # fmt: skip
    results = []
    for processes in (1, 2):
        done = llmkit(*command, processes=processes)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        results.append({k: v for k, v in found.items() if "second" not in k})
    one, two = results
    assert one["nll"] == pytest.approx(two["nll"], rel=1e-12)
    assert one["interval"] == two["interval"]
    assert [row["tokens"] for row in one["by_document"]] == [
        row["tokens"] for row in two["by_document"]
    ]
    for a, b in zip(one["by_document"], two["by_document"], strict=True):
        assert a["nll"] == pytest.approx(b["nll"], rel=1e-12)


def test_files_for_machines_people_and_browsers_are_written(trained, evaluate, tmp_path) -> None:
    files = {name: tmp_path / name for name in ("r.json", "r.md", "page.html", "rows.jsonl")}
    command = ("--model", trained / "run", "--text", trained / "held-out.txt",
               "data.document=line", "--per-token", files["page.html"], "--log-samples",
               files["rows.jsonl"], "--output")  # fmt: skip
    found = evaluate(*command, files["r.json"])
    assert json.loads(files["r.json"].read_text()) == found
    assert files["page.html"].read_text().count("<article>") == 9
    samples = [json.loads(line) for line in files["rows.jsonl"].read_text().splitlines()]
    assert sum(row["nll"] for row in samples) == pytest.approx(found["nll"])
    evaluate(*command, files["r.md"])
    report = files["r.md"].read_text()
    assert f"# Evaluation of {trained / 'run'}\n" in report.replace("\\", "")
    assert f"| perplexity | {found['perplexity']:.4g} |" in report


def test_people_get_a_table(trained, evaluate) -> None:
    out = evaluate("--model", trained / "run", "--text", trained / "held-out.txt", "--by-domain",
                   json_output=False)  # fmt: skip
    places = [out.index(part) for part in ("perplexity", "by domain", "Protocol: window 16;")]
    assert places == sorted(places)
    assert str(trained / "held-out.txt") in out


def test_a_dry_run_loads_no_weights_and_writes_nothing(trained, evaluate, tmp_path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in (trained / "run" / "final").iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    (bare / "model.safetensors").write_bytes(b"not weights")
    found = evaluate("--model", bare, "--text", trained / "held-out.txt", "--dry-run",
                     "--output", tmp_path / "r.json")  # fmt: skip
    assert found["models"][0]["window"] == 16
    assert found["data"]["test_files"]["documents"] == 1
    assert not (tmp_path / "r.json").exists()


def bad_input(trained: Path, tmp_path: Path) -> Sequence[tuple[str, list[object], int, str]]:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "notes.md").write_text("mine")
    model, text = ["--model", trained / "run"], ["--text", trained / "held-out.txt"]
    return [
        ("window", [*model, *text, "evaluation.window=17"], 78, "17 tokens exceeds the 16-token"),
        ("empty", [*model, "--text", tmp_path / "empty.txt"], 66, "holds no text"),
        ("missing", [*model, "--text", tmp_path / "none.txt"], 66, "does not exist"),
        ("no text", [*model, "evaluation.window=16"], 66, "data.test_files is not given"),
        ("no model", text, 2, "needs a model"),
        ("lost model", ["--model", tmp_path / "no", *text], 66, "no model directory"),
        ("written", [*model, *text, "--output", tmp_path / "notes.md"], 73, "was not written by"),
        ("page", [*model, *model, *text, "--per-token", tmp_path / "p"], 78, "one language model"),
        ("task", [*model, "--tasks", tmp_path / "t.yaml"], 66, "no task file")
        if importlib.util.find_spec("lm_eval")
        else ("task", [*model, "--tasks", "any"], 78, "not installed"),
    ]


def test_bad_input_is_refused_with_its_exit_code(trained, evaluate, tmp_path) -> None:
    for name, arguments, code, said in bad_input(trained, tmp_path):
        returned, message = evaluate(*arguments)
        assert (name, returned) == (name, code)
        assert said in message
        assert "Traceback" not in message


def test_a_tokenizer_that_does_not_fit_is_refused_with_both_sides(trained, evaluate) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs the shared data sets")
    code, message = evaluate("--model", trained / "run", "--text", trained / "held-out.txt",
                             f"tokenizer.name_or_path={SHARED / 'tokenizers/gpt2'}")  # fmt: skip
    assert code == 78
    assert "gpt2 has 50257 ids" in message
    assert "embeddings" in message


def test_the_config_for_text_runs(trained, evaluate) -> None:
    found = evaluate(CONFIGS / "evaluate-text.yaml", "--model", trained / "run", "--text",
                     trained / "held-out.txt")  # fmt: skip
    assert found["by_domain"][0]["perplexity"] == pytest.approx(found["perplexity"])


def test_the_config_for_comparing_runs(trained, evaluate) -> None:
    found = evaluate(CONFIGS / "evaluate-compare.yaml", "--model", trained / "run", "--model",
                     trained / "run" / "final", "--text", trained / "held-out.txt")  # fmt: skip
    assert len(found["models"]) == 2
    assert found["comparisons"][0]["bits_per_byte_difference"] == 0


def test_the_config_for_masked_models_runs(trained, evaluate, tmp_path) -> None:
    model = bert(tmp_path / "bert", trained / "run" / "final")
    found = evaluate(CONFIGS / "evaluate-masked.yaml", "--model", model, "--text",
                     trained / "held-out.txt")  # fmt: skip
    assert found["pseudo_perplexity"] > 1
    assert "perplexity" not in found


def test_the_config_for_labels_runs(classifier, rows, evaluate, tmp_path) -> None:
    found = evaluate(CONFIGS / "evaluate-labels.yaml", "--model", classifier, "--csv", rows,
                     "--output", tmp_path / "r.json")  # fmt: skip
    assert set(found) >= {
        "examples", "accuracy", "f1_macro", "f1_weighted", "per_class", "confusion_matrix",
        "baseline", "calibration_error", "worst",
    }  # fmt: skip
    picture = tmp_path / "r.json.confusion.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_rows_with_a_wrong_label_are_written_the_surest_first(
    classifier, evaluate, capsys, tmp_path
) -> None:
    """The labels follow from one word; four rows of a file that was not trained on have the wrong
    one, and the list names these alone."""
    chance, words = random.Random(0), {"ham": ("cat", "mat"), "spam": ("dog", "log")}

    def table(name: str, size: int, wrong: Sequence[int] = ()) -> Path:
        lines = ["text,label"]
        for number in range(size):
            label = ("ham", "spam")[number % 2]
            said = ("spam", "ham")[number % 2] if number in wrong else label
            text = " ".join([*chance.choices([*"abcdefgh"], k=4), chance.choice(words[label])])
            lines.append(f"{text},{said}")
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    wrong, run = (3, 10, 21, 38), tmp_path / "run"
    trained = run_command([
        "finetune", "--model", str(classifier), "--csv", str(table("train.csv", 160)),
        "-o", str(run), "train.max_steps=60", "train.learning_rate=0.02", "train.compile=false",
        "train.precision=fp32", "train.global_batch_size=16", "--quiet",
    ])  # fmt: skip
    assert trained == 0, capsys.readouterr().err
    rows, errors, scored = table("new.csv", 40, wrong), tmp_path / "e.jsonl", tmp_path / "s.jsonl"
    found = evaluate("--model", run, "--csv", rows, "--label-errors", errors,
                     "--log-samples", scored)  # fmt: skip
    listed = [json.loads(line) for line in errors.read_text().splitlines()]
    assert found["suspected_labels"] == len(listed) == len(wrong)
    every = {row["row"]: row for row in map(json.loads, scored.read_text().splitlines())}
    lines = rows.read_text().splitlines()
    assert {lines.index(f"{each['text']},{each['label']}") - 1 for each in listed} == {*wrong}
    margins = []
    for each in listed:
        chances = every[each["row"]]["probabilities"]
        assert {each["label"], each["suggested"]} == {"ham", "spam"}
        margins.append(chances[each["suggested"]] - chances[each["label"]])
    assert margins == sorted(margins, reverse=True)
    assert margins[-1] > 0


def test_the_config_for_references_runs(answers, evaluate) -> None:
    found = evaluate(CONFIGS / "evaluate-references.yaml", "--csv", answers)
    assert set(found) >= {"bleu", "bleu_signature", "chrf", "rougeL", "exact_match", "token_f1"}
    assert found["examples"] == 2


def test_texts_are_written_where_there_are_only_prompts(trained, answers, evaluate, tmp_path):
    command = (CONFIGS / "evaluate-references.yaml", "--model", trained / "run", "--csv", answers,
               "evaluation.prediction_column=null", "evaluation.prompt_column=prompt",
               "generation.max_new_tokens=4", "--log-samples", tmp_path / "s.jsonl")  # fmt: skip
    found = evaluate(*command)
    assert found["protocol"]["generation"]["max_new_tokens"] == 4
    samples = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in samples] == ["the cat", "a dog"]
    assert {k: v for k, v in evaluate(*command).items() if k != "seconds"} == found


@pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="needs lm-evaluation-harness")
def test_the_config_for_tasks_runs(trained, evaluate, tmp_path) -> None:
    (tmp_path / "sky.jsonl").write_text('{"q": "the cat", "choices": ["sat", "ran"], "a": 0}\n')
    (tmp_path / "sky.yaml").write_text(
        "task: sky\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'sky.jsonl'}\n"
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "{{q}}"\n'
        'doc_to_choice: "{{choices}}"\ndoc_to_target: a\nmetric_list:\n  - metric: acc\n'
    )
    found = evaluate(CONFIGS / "evaluate-tasks.yaml", "--model", trained / "run", "--tasks",
                     tmp_path / "sky.yaml")  # fmt: skip
    assert found["tasks"][0]["metric"] == "acc"


def test_text_that_a_run_was_trained_on_is_reported_with_the_figure(
    trained, corpus, evaluate, tmp_path
) -> None:
    told = json.loads((trained / "result.json").read_text())["warnings"]
    assert any("9 of these 9 documents (100%) are in the training data too" in t for t in told)
    mixed = tmp_path / "mixed.txt"
    lines = corpus.read_text().splitlines()[20:26] + [f"zq {i} xw vk" * 3 for i in range(6)]
    mixed.write_text("\n".join(lines))
    how = ("data.document=line", "evaluation.documents=separate")
    for model in ("run", "run/final"):
        found = evaluate("--model", trained / model, "--text", mixed, *how)
        [warning] = [each for each in found["warnings"] if "was trained on" in each]
        assert "6 of these 12 documents (50%)" in warning
    apart = found["not_trained_on"]
    shown = evaluate("--model", trained / "run", "--text", mixed, *how,
                     json_output=False)  # fmt: skip
    assert "not trained on (6 documents)" in shown
    mixed.write_text("\n".join(lines[6:]))
    found = evaluate("--model", trained / "run", "--text", mixed, *how)
    assert not [each for each in found["warnings"] if "was trained on" in each]
    assert "not_trained_on" not in found
    assert apart == {key: pytest.approx(found[key], rel=1e-6) for key in apart}
    assert set(apart) >= {"documents", "tokens", "perplexity", "bits_per_byte"}
    assert f"perplexity {apart['perplexity']:.4g}" in warning
    mixed.write_text("\n".join(lines[:6]))
    found = evaluate("--model", trained / "run", "--text", mixed, *how)
    [warning] = [each for each in found["warnings"] if "was trained on" in each]
    assert warning.endswith("there is no document that it was not trained on")
