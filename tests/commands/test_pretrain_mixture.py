"""`llmkit pretrain` on a mixture of domains: the ladder of invariants, and what is told of each."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.jobs import (
    CONFIGS,
    assert_choices_explained,
    assert_close,
    assert_held_out_agrees,
    assert_same,
    changed,
    metrics,
    tiny,
)

from .conftest import Run

CONFIG = CONFIGS / "pretrain-mixture.yaml"
SIZES = tiny("data.document=line", "train.max_steps=20", "train.save_steps=4",
             "train.eval_steps=8", "train.logging_steps=3")  # fmt: skip


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 120 one-line sums."""
    chance = random.Random(1)
    pairs = [(chance.randint(0, 99), chance.randint(0, 99)) for _ in range(120)]
    path = tmp_path_factory.mktemp("sums") / "sums.txt"
    path.write_text("".join(f"{a} + {b} = {a + b}\n" for a, b in pairs), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def domains(corpus: Path, sums: Path) -> list[str]:
    """The keys of two domains: words, and three times as often sums."""
    return [f"data.mixture.words.files={corpus}", "data.mixture.words.weight=1",
            f"data.mixture.sums.files={sums}", "data.mixture.sums.weight=3"]  # fmt: skip


@pytest.fixture(scope="module")
def command(domains: list[str]) -> Callable[..., list[object]]:
    """The command line of a run with some changes."""

    def line(run: Path, *changes: str) -> list[object]:
        return ["pretrain", "--output-dir", run, *changed((*domains, *SIZES), *changes)]

    return line


@pytest.fixture(scope="module")
def reference(llmkit: Run, command, tmp_path_factory) -> Path:
    """An uninterrupted run of 20 steps."""
    run = tmp_path_factory.mktemp("runs") / "reference"
    done = llmkit(*command(run, "--json"))
    assert done.returncode == 0, done.stderr
    (run / "result.json").write_text(done.stdout)
    return run


def test_every_domain_has_its_figures_and_epochs(reference: Path) -> None:
    result = json.loads((reference / "result.json").read_text())
    figures = {"loss", "perplexity", "bits_per_byte"}
    own = {f"{figure}/{name}" for figure in figures for name in ("words", "sums")}
    assert set(result["validation"]) == figures | own
    assert list(result["domains"]) == ["words", "sums"]
    for name, found in result["domains"].items():
        assert set(found) == {"share", "epochs", "after"}
        assert found["after"]["loss"] == result["validation"][f"loss/{name}"]
    assert [found["share"] for found in result["domains"].values()] == [0.25, 0.75]
    lines = metrics(reference)
    assert result["domains"]["sums"]["epochs"] == lines[-2]["epochs/sums"]
    logged = [line for line in lines if "samples" not in line]
    assert all({"epochs/words", "epochs/sums"} <= line.keys() for line in logged)


def test_the_figures_of_a_domain_are_those_that_evaluate_gives_it(
    reference: Path, llmkit: Run, domains: list[str]
) -> None:
    done = llmkit("evaluate", *domains, "--model", reference, "data.document=line",
                  "evaluation.precision=fp32", "evaluation.window=16", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    trained = json.loads((reference / "result.json").read_text())
    assert result["bits_per_byte"] == pytest.approx(trained["validation"]["bits_per_byte"])
    for row in result["by_domain"]:
        found = trained["domains"][row["domain"]]["after"]
        assert row["bits_per_byte"] == pytest.approx(found["bits_per_byte"], rel=1e-5)
        assert row["perplexity"] == pytest.approx(found["perplexity"], rel=1e-5)


def test_a_second_run_is_bit_identical(reference, llmkit, command, tmp_path) -> None:
    assert llmkit(*command(tmp_path / "run")).returncode == 0
    assert_same(tmp_path / "run", reference)


def test_a_killed_run_resumes_bit_identically(reference, llmkit, trials, command, tmp_path) -> None:
    run = tmp_path / "killed"
    process = trials.start(*command(run))
    process.until_lines(run / "metrics.jsonl", 4)
    process.end(signal.SIGKILL)
    again = llmkit(*command(run))
    assert again.returncode == 0, again.stderr
    assert_same(run, reference)


def test_the_micro_batch_changes_nothing(reference, llmkit, command, tmp_path) -> None:
    run = tmp_path / "run"
    done = llmkit(*command(run, "train.micro_batch_size=1"))
    assert done.returncode == 0, done.stderr
    assert_close(run, reference)


def test_two_processes_give_what_one_gives(reference, llmkit, command, tmp_path) -> None:
    done = llmkit(*command(tmp_path / "two"), processes=2)
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "two", reference)


@pytest.mark.slow
def test_files_may_move_before_a_resume(reference, llmkit, command, corpus, tmp_path) -> None:
    moved = tmp_path / "moved.txt"
    moved.write_bytes(corpus.read_bytes())
    done = llmkit(*command(reference, f"data.mixture.words.files={moved}"))
    assert done.returncode == 0, done.stderr
    changed = llmkit(*command(reference, "data.mixture.words.weight=2"))
    assert changed.returncode == 78
    assert "data.mixture.words.weight was 1.0, is now 2.0" in changed.stderr
    moved.write_text(moved.read_text() + "more\n")
    grown = llmkit(*command(reference, f"data.mixture.words.files={moved}"))
    assert grown.returncode == 78
    assert "training data of words" in grown.stderr


@pytest.fixture(scope="module")
def adapted(reference: Path, llmkit: Run, corpus, sums, tmp_path_factory) -> tuple[Path, str]:
    """The reference gone on with on sums, by the config that we ship; and what people read."""
    run = tmp_path_factory.mktemp("runs") / "adapted"
    files = {"reports": sums, "general": corpus, "code": corpus}
    command = ["pretrain", CONFIG, "--model", reference, "--output-dir", run,
               *(f"data.mixture.{name}.files={path}" for name, path in files.items()),
               "data.document=line", "data.block_size=16", "train.learning_rate=3e-3",
               "train.micro_batch_size=4", "train.num_train_epochs=2",
               "generation.max_new_tokens=4"]  # fmt: skip
    done = llmkit(*command)
    assert done.returncode == 0, done.stderr
    again = llmkit(*command, "--json")
    assert again.returncode == 0, again.stderr
    (run / "result.json").write_text(again.stdout)
    return run, done.stdout


def test_a_continued_model_reports_what_it_gained_and_lost(reference, adapted) -> None:
    run, shown = adapted
    result = json.loads((run / "result.json").read_text())
    before = json.loads((reference / "result.json").read_text())["domains"]
    assert metrics(run)[0]["step"] == 0
    found = result["domains"]
    assert [domain["share"] for domain in found.values()] == [0.8, 0.2, 0]
    assert found["reports"]["before"] == pytest.approx(before["sums"]["after"], rel=1e-6)
    assert found["general"]["before"] == pytest.approx(before["words"]["after"], rel=1e-6)
    # The same text, summed in fp32 in other micro-batches.
    assert found["code"]["before"] == pytest.approx(found["general"]["before"], rel=1e-6)
    for domain in found.values():
        for figure, value in domain["change"].items():
            assert value == pytest.approx(domain["after"][figure] - domain["before"][figure])
    assert found["reports"]["change"]["loss"] < 0
    assert found["code"]["epochs"] == 0
    row = next(line for line in shown.splitlines() if line.strip().startswith("reports"))
    assert "80.0%" in row
    assert row.rstrip().endswith("gained")


def test_plain_transformers_reads_the_result(adapted) -> None:
    run, _ = adapted
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    model = AutoModelForCausalLM.from_pretrained(run / "final")
    assert model(**tokenizer("1 + 1", return_tensors="pt")).logits.isfinite().all()


@pytest.mark.slow
def test_hidden_tokens_of_a_mixture_are_learned_and_reported_by_domain(
    llmkit, trials, command, tmp_path
) -> None:
    masked = ("train.objective=masked", "train.max_steps=12")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert llmkit(*command(whole, *masked)).returncode == 0
    validated = next(line for line in metrics(whole) if "validation_loss" in line)
    assert {"validation_accuracy/sums", "validation_loss/words", "epochs/words"} <= validated.keys()
    process = trials.start(*command(killed, *masked))
    process.until_lines(killed / "metrics.jsonl", 2)
    process.end(signal.SIGKILL)
    again = llmkit(*command(killed, *masked))
    assert again.returncode == 0, again.stderr
    assert_same(killed, whole)
    two = llmkit(*command(tmp_path / "two", *masked), processes=2)
    assert two.returncode == 0, two.stderr
    assert_close(tmp_path / "two", whole)


def test_weights_are_those_of_the_sizes_where_none_are_given(
    llmkit, corpus, sums, tmp_path
) -> None:
    files = [f"data.mixture.words.files={corpus}", f"data.mixture.sums.files={sums}"]
    whole = tiny("data.document=line", "data.validation_fraction=0", "train.num_train_epochs=1")
    done = llmkit("pretrain", *files, *whole, "--output-dir", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    domains = json.loads(done.stdout)["domains"]
    # Once through all text is once through each.
    assert [found["epochs"] for found in domains.values()] == pytest.approx([1, 1], abs=0.03)
    assert set(domains["sums"]) == {"share", "epochs"}


def test_faults_are_reported_before_any_work(llmkit, corpus, tmp_path) -> None:
    (tmp_path / "blank.txt").write_text("\n\n")
    files = [f"data.mixture.words.files={corpus}", f"data.mixture.blank.files={tmp_path}/blank.txt"]
    blank = llmkit("pretrain", *files, "data.document=line", "--output-dir", tmp_path / "run")
    assert (blank.returncode, "data.mixture.blank.files holds no text" in blank.stderr) == (
        65,
        True,
    )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_dry_run_tells_of_every_domain(llmkit, domains, tmp_path) -> None:
    done = llmkit("pretrain", *domains, *SIZES, "--output-dir", tmp_path / "run", "--dry-run",
                  "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)["data"]
    assert data["mixture.words.files"]["documents"] == 60
    assert data["mixture.sums.files"]["documents"] == 120


def test_what_became_of_each_passage_adds_up_to_the_figures(reference) -> None:
    found = assert_held_out_agrees(reference)
    assert list(found.domains) == ["words", "sums"]
    domains = json.loads((reference / "result.json").read_text())["domains"]
    for name, domain in domains.items():
        assert found.of_domain(name).figures()["loss"] == pytest.approx(domain["after"]["loss"])


def test_every_choice_of_auto_has_its_reason(reference) -> None:
    assert_choices_explained(reference)
