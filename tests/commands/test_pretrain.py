"""`llmkit pretrain` as a user runs it: the ladder of invariants, end to end."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkit.data.text import fingerprints
from tests.jobs import (
    SHARED,
    TINY,
    assert_choices_explained,
    assert_close,
    assert_held_out_agrees,
    assert_same,
    calls_of,
    metrics,
    needs_shared,
    tiny,
)

LINES = "data.document=line"


@pytest.fixture(scope="module")
def reference(llmkit, corpus, tmp_path_factory) -> Path:
    """An uninterrupted run of 20 steps."""
    run = tmp_path_factory.mktemp("runs") / "reference"
    done = llmkit("pretrain", "--text", corpus, LINES, *TINY, *SMALL, "--output-dir", run, "--json")
    assert done.returncode == 0, done.stderr
    (run / "result.json").write_text(done.stdout)
    return run


SMALL = ("train.max_steps=20", "train.save_steps=4", "train.eval_steps=8", "train.logging_steps=3")


def test_stdout_holds_the_contracts_json_and_nothing_else(reference) -> None:
    result = json.loads((reference / "result.json").read_text())
    assert result["command"] == "pretrain"
    assert result["step"] == 20
    assert Path(result["run_dir"]) == reference
    assert result["tokens_per_second"] > 0
    assert result["seconds"] > 0
    assert set(result["validation"]) == {"loss", "perplexity", "bits_per_byte"}


def test_the_run_directory_holds_what_the_contract_lists(reference) -> None:
    names = {path.name for path in reference.iterdir()}
    assert names >= {"config.yaml", "run.json", "metrics.jsonl", "timing.jsonl", "checkpoints",
                     "final", "loss.png"}  # fmt: skip
    kept = sorted(path.name for path in (reference / "checkpoints").iterdir())
    assert "step-0000000020" in kept
    assert not [name for name in kept if name.startswith(".")]
    assert (reference / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_plain_transformers_gives_the_reported_loss(reference, corpus, llmkit, tmp_path) -> None:
    """One document at a time, end-of-text before and after it."""
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("\n".join(corpus.read_text().splitlines()[:7]) + "\n")
    run = tmp_path / "run"
    sizes = tiny("data.block_size=64")
    files = ("--text", corpus, f"data.validation_files={held_out}", LINES, "--output-dir", run)
    done = llmkit("pretrain", *files, *sizes, "train.max_steps=5", "--json")
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout)["validation"]
    model = AutoModelForCausalLM.from_pretrained(run / "final").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    end, nll, count, place = tokenizer.eos_token_id, 0.0, 0, 0
    for line in held_out.read_text().splitlines():
        ids = [end, *tokenizer(line)["input_ids"], end]
        # Blocks of 64 cut the stream of documents; a document sees its part of the block only.
        while len(ids) > 1:
            room = 64 - place % 64
            part = torch.tensor([ids[: room + 1]])
            with torch.no_grad():
                logits = model(part[:, :-1]).logits[0].double()
            nll += functional.cross_entropy(logits, part[0, 1:], reduction="sum").item()
            count += part.shape[1] - 1
            place += part.shape[1] - 1
            ids = ids[room:]
    n_bytes = sum(len(line.encode()) for line in held_out.read_text().splitlines())
    assert reported["loss"] == pytest.approx(nll / count, abs=1e-4)
    assert reported["bits_per_byte"] == pytest.approx(nll / math.log(2) / n_bytes, abs=1e-4)


def test_a_run_of_no_steps_gives_the_model_as_it_begins(corpus, llmkit, tmp_path) -> None:
    run = tmp_path / "run"
    done = llmkit(
        "pretrain",
        "--text",
        corpus,
        LINES,
        *tiny("train.max_steps=0"),
        "--output-dir",
        run,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 0
    assert AutoModelForCausalLM.from_pretrained(run / "final").num_parameters() > 0


def test_the_same_command_again_is_bit_identical_and_done_at_once(
    reference, llmkit, corpus, tmp_path
) -> None:
    run = tmp_path / "again"
    command = ("pretrain", "--text", corpus, LINES, *TINY, *SMALL, "--output-dir", run, "--json")
    assert llmkit(*command).returncode == 0
    assert_same(run, reference)
    finished = llmkit(*command)
    assert finished.returncode == 0
    assert json.loads(finished.stdout)["step"] == 20
    assert_same(run, reference)


@pytest.mark.parametrize(
    "lines", [4, *(pytest.param(lines, marks=pytest.mark.slow) for lines in (1, 9))]
)
def test_a_killed_run_resumes_bit_identically(
    reference, llmkit, trials, corpus, tmp_path, lines
) -> None:
    run = tmp_path / "killed"
    command = ("pretrain", "--text", corpus, LINES, *TINY, *SMALL, "--output-dir", run)
    process = trials.start(*command)
    process.until_lines(run / "metrics.jsonl", lines)
    process.end(signal.SIGKILL)
    again = llmkit(*command)
    assert again.returncode == 0, again.stderr
    assert_same(run, reference)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_says_so_and_continues_bit_identically(
    reference, llmkit, trials, corpus, tmp_path, number, code
) -> None:
    run = tmp_path / "stopped"
    command = ("pretrain", "--text", corpus, LINES, *TINY, *SMALL, "--output-dir", run)
    process = trials.start(*command)
    process.until_lines(run / "metrics.jsonl", 3)
    returned, _, said = process.end(number)
    assert returned == code, said
    for part in ("error[", "kept:", "next:"):
        assert part in said
    assert llmkit(*command).returncode == 0
    assert_same(run, reference)


def test_two_processes_give_what_one_gives(reference, torchrun, corpus, tmp_path) -> None:
    run = tmp_path / "two"
    done = torchrun("pretrain", "--text", corpus, LINES, *TINY, *SMALL, "--output-dir", run)
    assert done.returncode == 0, done.stderr
    assert_close(reference, run)


def test_a_changed_config_or_text_is_refused_with_what_changed(
    reference, llmkit, corpus, tmp_path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(corpus.read_text() + "one more line\n")
    base = ("pretrain", *TINY, LINES, *SMALL, "--output-dir", reference)
    changed = llmkit(*base, "--text", corpus, "train.learning_rate=0.5", "seed=3")
    assert changed.returncode == 78
    assert "train.learning_rate" in changed.stderr
    grown = llmkit(*base, "--text", other)
    assert grown.returncode == 78
    assert "training data" in grown.stderr


def test_training_continues_from_a_pretrained_model(reference, llmkit, corpus, tmp_path) -> None:
    run = tmp_path / "continued"
    done = llmkit("pretrain", "--text", corpus, LINES, "--model", reference, "train.max_steps=2",
                  "data.block_size=16", "generation.max_new_tokens=4", "--output-dir", run,
                  "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    first = metrics(run)[0]["train_loss"]
    assert first < metrics(reference)[0]["train_loss"]


def test_training_and_held_out_text_are_each_fingerprinted_once(call, corpus, tmp_path) -> None:
    sizes = tiny("train.max_steps=1", "data.validation_fraction=0.2")
    with calls_of(fingerprints.of_tokens) as made:
        done = call("pretrain", "--text", corpus, LINES, *sizes, "--output-dir", tmp_path / "run")
    assert done["code"] == 0, done["said"]
    texts = [tuple(file.fingerprint for file in each["files"]) for each in made]
    assert (len(texts), len({*texts})) == (2, 2)
    assert (tmp_path / "run" / "fingerprints.safetensors").exists()


def test_a_dry_run_reports_and_writes_nothing(llmkit, corpus, tmp_path) -> None:
    run = tmp_path / "dry"
    done = llmkit("pretrain", "--text", corpus, *TINY, "--output-dir", run, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["data"]["train_files"]["documents"] == 1
    assert report["parameters"] > 0
    assert not run.exists()


def test_minutes_bound_the_whole_run(llmkit, corpus, tmp_path) -> None:
    done = llmkit("pretrain", "--text", corpus, *TINY, "train.max_minutes=0.25", "--output-dir",
                  tmp_path / "run", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["seconds"] < 30
    assert result["step"] > 10
    rates = [m["learning_rate"] for m in metrics(tmp_path / "run") if "learning_rate" in m]
    assert rates[-1] < 0.1 * max(rates)


@pytest.mark.slow
def test_minutes_that_a_small_text_does_not_need_are_left(llmkit, corpus, tmp_path) -> None:
    done = llmkit("pretrain", "--text", corpus, *TINY, "train.max_minutes=30", "--output-dir",
                  tmp_path / "run", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["step"] == 700
    assert result["seconds"] < 300
    assert "more epochs would overfit" in done.stderr
    rates = [m["learning_rate"] for m in metrics(tmp_path / "run") if "learning_rate" in m]
    assert rates[-1] < 0.1 * max(rates)


@needs_shared
def test_chinese_poems_train(llmkit, tmp_path) -> None:
    done = llmkit("pretrain", "--text", SHARED / "text" / "tang_poems.txt", *TINY,
                  "data.document=blank_line", "train.max_steps=3", "--output-dir",
                  tmp_path / "run", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    for text in ("春眠不覺曉，處處聞啼鳥。", "😀\t𠀋"):  # noqa: RUF001
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@needs_shared
def test_a_published_model_trains_on(llmkit, corpus, tmp_path) -> None:
    done = llmkit("pretrain", "--text", SHARED / "golden/cs336_bpe/tinystories_sample.txt",
                  "--model", SHARED / "models" / "tinystories-656k", "data.validation_fraction=0.2",
                  "train.max_steps=2", "data.block_size=64", "generation.max_new_tokens=4",
                  "--output-dir", tmp_path / "run", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run")[0]["train_loss"] < 4.5


def test_a_run_has_a_name_that_its_command_finds_again_in_any_number_of_processes(
    llmkit, corpus, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ("pretrain", "--text", corpus, LINES, *TINY, "train.max_steps=2", "--json")
    for shown in ("--dry-run", "--print-config"):
        assert json.loads(llmkit(*line, shown).stdout)["run_dir"] == "runs/pretrain-corpus-1"
    assert not Path("runs").exists()
    done = [llmkit(*line, "seed=1", processes=2), llmkit(*line, "seed=1"), llmkit(*line)]
    runs = [json.loads(each.stdout)["run_dir"] for each in done]
    assert runs == [f"runs/pretrain-corpus-{number}" for number in (1, 1, 2)]
    assert "already finished at step" in done[1].stderr


def test_what_became_of_each_passage_adds_up_to_the_figures(reference) -> None:
    found = assert_held_out_agrees(reference)
    assert found.kind == "text"


def test_every_choice_of_auto_has_its_reason(reference) -> None:
    assert_choices_explained(reference)
