"""`llmkit finetune train.objective=completion` as a user runs it, on small tables made here."""

from __future__ import annotations

import csv
import io
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM

from llmkit.cli import app
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
    weights,
    write_parts,
    write_table,
)

PAIR = ("prompt", "response")
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black"}
CONFIG = CONFIGS / "finetune-completion.yaml"
SMALL = (
    "train.objective=completion", "train.learning_rate=1e-2", "train.global_batch_size=4",
    "train.num_train_epochs=8", "train.compile=false", "train.precision=fp32",
    "data.block_size=128", "generation.max_new_tokens=8", "generation.do_sample=false",
)  # fmt: skip


def rows(first: int, n: int) -> list[tuple[str, str]]:
    things = list(COLOURS)
    names = [things[k % 4] for k in range(n)]
    return [(f"what of {name} {first + k}", COLOURS[name]) for k, name in enumerate(names)]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    texts = [f"{prompt} {response}\n\n### User: Assistant:" for prompt, response in rows(0, 200)]
    path = tmp_path_factory.mktemp("models") / "base"
    return save_new_model(path, tokenizer.train_bpe(texts, 330))


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, Path]:
    write = partial(write_table, columns=PAIR)
    parts = {"train": rows(100, 160), "validation": rows(300, 12)}
    return write_parts(tmp_path_factory, "csv", write, **parts)


@pytest.fixture(scope="module")
def command(base, tables) -> tuple[object, ...]:
    return finetuning(tables, "--model", base, *SMALL)


@pytest.fixture(scope="module")
def reference(command, tmp_path_factory) -> Path:
    return finetuned(tmp_path_factory, [*command, "evaluation.responses=12"])["run"]


def test_the_model_learns_to_respond_and_to_end(reference) -> None:
    found = json.loads((reference / "evaluation.json").read_text())["validation"]
    assert found["perplexity"] < 1.2
    assert found["answers"]["exact_match"] > 0.9
    assert found["answers"]["chrf"] > 90
    assert {"rougeL", "interval", "protocol"} <= found["answers"].keys()
    samples = [json.loads(line) for line in (reference / "samples.jsonl").open()]
    assert len(samples) == 12
    assert {"prompt", "prediction", "reference", "row"} <= samples[0].keys()


def test_plain_transformers_gives_the_reported_loss_of_the_responses(reference, tables) -> None:
    model = AutoModelForCausalLM.from_pretrained(reference / "final").eval()
    own = AutoTokenizer.from_pretrained(reference / "final")
    nll, count = 0.0, 0
    with tables["validation"].open() as file:
        for row in csv.DictReader(file):
            asked = own.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}],
                tokenize=False, add_generation_prompt=True,
            )  # fmt: skip
            before = own(asked, add_special_tokens=False)["input_ids"]
            said = own(row["response"] + own.eos_token, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([before + said])).logits[0, len(before) - 1 : -1]
            nll += functional.cross_entropy(logits, torch.tensor(said), reduction="sum").item()
            count += len(said)
    found = json.loads((reference / "evaluation.json").read_text())["validation"]
    assert found["tokens"] == count
    assert found["loss"] == pytest.approx(nll / count, rel=1e-4, abs=1e-6)
    best = min(metrics(reference), key=lambda line: line.get("validation_loss", 9))
    assert best["validation_loss"] == pytest.approx(found["loss"], rel=1e-3, abs=1e-5)


def test_generate_and_chat_talk_to_the_result(reference, call, capsys, monkeypatch) -> None:
    greedy = ("generation.do_sample=false", "generation.max_new_tokens=8")
    found = call("generate", "--model", reference, "--chat", "--prompt", "what of sky 900", *greedy)
    assert found["code"] == 0, found["said"]
    assert (found["text"], found["finish_reason"]) == ("blue", "eos")
    monkeypatch.setattr("sys.stdin", io.StringIO("what of coal 901\nwhat of snow 902\n"))
    assert app.run_command(["chat", "--model", str(reference), *greedy]) == 0
    assert "black" in capsys.readouterr().out


@pytest.mark.parametrize("size", [1, 2])
def test_the_micro_batch_changes_no_figure(reference, command, call, tmp_path, size) -> None:
    run = tmp_path / "run"
    result = call(*command, f"train.micro_batch_size={size}", "--output-dir", run)
    assert result["code"] == 0, result["said"]
    assert_close(reference, run, rel=2e-3, abs=1e-5)


def test_a_run_that_is_resumed_or_repeated_is_bit_identical(
    reference, command, call, trials, tmp_path
) -> None:
    run = tmp_path / "killed"
    resume_killed(trials, call, command, run)
    assert_same(run, reference)
    resume_shortened(call, command, run)
    assert_same(run, reference)


def test_answers_can_be_asked_for_once_the_run_is_done(command, call, tmp_path) -> None:
    line = changed(command, "train.max_steps=2", "train.num_train_epochs=null")
    run = tmp_path / "run"
    assert "answers" not in call(*line, "--output-dir", run)["validation"]
    again = call(*line, "evaluation.responses=2", "--output-dir", run)
    assert again["code"] == 0, again["said"]
    assert again["validation"]["answers"]["examples"] == 2


def test_two_processes_give_what_one_gives(reference, command, llmkit, tmp_path) -> None:
    run = tmp_path / "two"
    done = llmkit(*command, "--output-dir", run, "--json", processes=2)
    assert done.returncode == 0, done.stderr
    assert_close(reference, run, rel=2e-3, abs=1e-5)


def test_low_rank_updates_end_merged_and_resume_to_the_bit(
    reference, tables, call, tmp_path
) -> None:
    pytest.importorskip("peft")
    keys = changed(SMALL, "model.lora.r=4", "train.num_train_epochs=1", "train.save_steps=2",
                   "train.load_best_model_at_end=false")  # fmt: skip
    line = finetuning(tables, "--model", reference, *keys)
    run, result = assert_resumes_to_the_bit(call, line, tmp_path)
    assert weights(run).keys() == weights(reference).keys()
    kept = "model.embed_tokens.weight"
    assert torch.equal(weights(reference)[kept], weights(run)[kept])
    assert result["validation"]["perplexity"] < 1.5


def chats(path: Path, n: int) -> Path:
    lines = []
    for prompt, response in rows(0, n):
        messages = [
            {"role": "system", "content": "be short"},
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": response},
            {"role": "user", "content": "again"},
            {"role": "assistant", "content": response},
        ]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_chats_of_several_turns_are_learned_by_the_shipped_config(base, call, tmp_path) -> None:
    path = chats(tmp_path / "chats.jsonl", 40)
    run = tmp_path / "run"
    changes = ("train.max_steps=3", "train.num_train_epochs=null", "generation.max_new_tokens=4")
    line = ("finetune", CONFIG, "--csv", path, "--model", base, *changes, "--output-dir", run)
    report = call(*line, "--dry-run")
    assert (report["rows"], report["turns"]) == (40, 80), report["said"]
    assert report["columns"] == {"messages": "messages"}
    assert report["splits"] == {"train": {"rows": 36}, "validation": {"rows": 4}}
    assert not run.exists()
    result = call(*line)
    assert result["code"] == 0, result["said"]
    assert {"loss", "perplexity"} <= result["validation"].keys()
    assert result["tokens_per_second"] > 0
    assert "headings" in result["said"]


def test_the_dry_run_counts_what_is_cut_repeated_or_skipped(base, call, tmp_path) -> None:
    table = [*rows(0, 30), rows(0, 1)[0], ("word " * 90, "yes"), ("what of it", "long " * 90)]
    path = write_table(tmp_path / "t.csv", table, PAIR)
    keys = changed(
        SMALL, "data.validation_fraction=0.2", "data.max_length=60", "data.block_size=60"
    )
    run = tmp_path / "run"
    report = call("finetune", "--csv", path, "--model", base, *keys, "--dry-run",
                  "--output-dir", run)  # fmt: skip
    assert report["code"] == 0, report["said"]
    assert report["rows"] == 33
    assert report["duplicates"]["rows"][0]["row"] == 31
    assert report["left_out"]["count"] == 1
    assert report["left_out"]["rows"][0]["row"] == 32
    assert sum(each["truncated"] for each in report["lengths"].values()) == 2
    assert report["lengths"]["train"]["percentiles"].keys() == {"50", "90", "95", "99", "100"}
    assert "row 32" in report["said"]
    assert not run.exists()


def test_a_model_that_cannot_keep_packed_rows_apart_gets_one_conversation_each(
    call, base, tables, tmp_path
) -> None:
    own = AutoTokenizer.from_pretrained(base)
    other = save_new_model(tmp_path / "mamba", own, "mamba", layers=1)
    result = call("finetune", "--csv", tables["train"], "--model", other, *SMALL,
                  "train.max_steps=2", "--output-dir", tmp_path / "run")  # fmt: skip
    assert result["code"] == 0, result["said"]
    assert "one row per conversation" in result["said"]


HEAD = "prompt,response\n"
GOOD = HEAD + "".join(f"ask {number},say {number}\n" for number in range(12))
TALK = '{"messages": [{"role": "user", "content": "a"}, {"role": "%s", "content": "%s"}]}\n'
FINE = TALK % ("assistant", "b")


@pytest.mark.parametrize(
    ("name", "content", "arguments", "code", "said"),
    [
        ("t.csv", HEAD + "a,b\nc,\n", (), 65, "t.csv row 2"),
        ("t.csv", HEAD + 'a,b\nc," "\n', (), 65, "empty response"),
        ("t.jsonl", FINE + TALK % ("robot", "b"), (), 65, "t.jsonl:2"),
        ("t.jsonl", FINE + TALK % ("robot", "b"), (), 65, "unknown role 'robot'"),
        ("t.jsonl", FINE + TALK % ("user", "b"), (), 65, "no response to learn"),
        ("t.jsonl", FINE + TALK % ("assistant", " "), (), 65, "t.jsonl row 2"),
        ("t.jsonl", FINE + TALK.replace("user", "assistant") % ("assistant", "b"), (), 65, "begin"),
        ("t.jsonl", FINE + '{"messages": "hello"}\n', (), 65, "not a list"),
        ("t.jsonl", FINE + '{"messages": [{"role": "user"}]}\n', (), 65, "data row 2"),
        ("t.txt", "one\ntwo\n", (), 65, "no columns"),
        ("t.csv", "x,y\n1,2\n", (), 65, "the columns are 0 'x'"),
        ("t.csv", GOOD, ("data.prompt_column=ask",), 65, "no column is called 'ask'"),
        ("t.csv", GOOD, ("data.max_length=4",), 65, "whole response"),
        ("t.csv", GOOD, ("data.max_length=900",), 78, "128 positions"),
        ("t.csv", GOOD, ("data.block_size=20", "data.max_length=30"), 78, "do not fit"),
        ("t.csv", GOOD, ("train.class_weights=balanced",), 78, "train.class_weights"),
        ("t.csv", GOOD, ("data.label_column=response",), 78, "data.label_column"),
        ("t.csv", GOOD, ("model.lora.alpha=4",), 78, "needs a rank"),
        ("t.csv", GOOD, ("tokenizer.chat_template=none.jinja",), 66, "none.jinja"),
        ("t.csv", GOOD, ("train.metric_for_best_model=f1_macro",), 78, "perplexity"),
        ("t.csv", GOOD, ("evaluation.responses=3", "data.validation_fraction=0"), 78, "held-out"),
        ("t.csv", GOOD, ("train.objective=masked",), 78, "llmkit pretrain"),
    ],
)
def test_bad_input_is_reported_before_anything_is_written(  # noqa: PLR0913 (its cases)
    base, call, tmp_path, name, content, arguments, code, said
) -> None:
    path, run = tmp_path / name, tmp_path / "run"
    path.write_text(content)
    line = ("finetune", "--csv", path, "--model", base, "train.objective=completion")
    result = call(*changed(line, *arguments), "--output-dir", run)
    assert result["code"] == code, result["said"]
    assert said in result["said"]
    assert not (run / "run.json").exists()


def test_models_that_cannot_complete_are_refused(call, base, tables, tmp_path) -> None:
    line = ("finetune", "--csv", tables["train"], "train.objective=completion")
    none = call(*line)
    assert none["code"] == 78
    assert "--model" in none["said"]
    shape = BertConfig(
        vocab_size=330, hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=16,
    )  # fmt: skip
    BertForMaskedLM(shape).save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "bert")
    masked = call(*line, "--model", tmp_path / "bert")
    assert masked["code"] == 65
    assert "BertForMaskedLM" in masked["said"]


def test_prompts_that_a_run_was_trained_on_are_counted(call, reference, tables) -> None:
    columns = ("evaluation.reference_column=response", "evaluation.prompt_column=prompt")
    for name, learned in (("train", 1), ("validation", 0)):
        found = call("evaluate", "--model", reference, "--csv", tables[name], *columns,
                     "generation.max_new_tokens=1")  # fmt: skip
        assert found["code"] == 0, found["said"]
        told = [each for each in found["warnings"] if "was trained on 160 of these 160" in each]
        assert len(told) == learned


def test_what_became_of_each_conversation_adds_up_to_the_figures(reference) -> None:
    found = assert_held_out_agrees(reference)
    assert len(found) == 12


def test_every_choice_of_auto_has_its_reason(reference) -> None:
    assert_choices_explained(reference)
