"""`llmkit finetune train.objective=sequence_to_sequence` as a user runs it, on small tables made
here."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF
from torch.nn import functional
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.trainer_pt_utils import LabelSmoother

from tests import pairs
from tests.jobs import (
    CONFIGS,
    assert_choices_explained,
    assert_close,
    assert_held_out_agrees,
    assert_processes_agree,
    assert_resumes_to_the_bit,
    assert_same,
    changed,
    finetuned,
    finetuning,
    metrics,
    resume_killed,
    weights,
    write_parts,
    write_table,
)

PAIR = ("source", "target")
CONFIG = CONFIGS / "finetune-sequence-to-sequence.yaml"
SMALL = (
    "train.objective=sequence_to_sequence", "model.config.d_model=32",
    "model.config.num_hidden_layers=2", "model.config.dropout=0.1", "train.global_batch_size=8",
    "train.num_train_epochs=6", "train.label_smoothing_factor=0.1", "train.compile=false",
    "train.precision=fp32", "train.learning_rate=2e-2", "tokenizer.vocab_size=330",
)  # fmt: skip


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parts = {"train": pairs.word_pairs(1, 320, 6), "validation": pairs.word_pairs(2, 24, 6)}
    return write_parts(tmp_path_factory, "csv", partial(write_table, columns=PAIR), **parts)


@pytest.fixture(scope="module")
def command(tables) -> tuple[object, ...]:
    return finetuning(tables, *SMALL)


@pytest.fixture(scope="module")
def reference(command, tmp_path_factory) -> Path:
    return finetuned(tmp_path_factory, command)["run"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def plain_loss(
    directory: Path, rows: Sequence[dict[str, str]], prefix: str = ""
) -> tuple[float, int]:
    """The mean of transformers' own loss over all target tokens, one row at a time."""
    model = AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    own = AutoTokenizer.from_pretrained(directory)
    nll, count = 0.0, 0
    for row in rows:
        batch = own(prefix + row["source"], text_target=row["target"], return_tensors="pt")
        with torch.no_grad():
            nll += float(model(**batch).loss) * batch["labels"].numel()
        count += batch["labels"].numel()
    return nll / count, count


def test_the_model_learns_to_translate_better_than_its_baselines(reference, tables) -> None:
    result = json.loads((reference / "run.json").read_text())["result"]
    found, beside = result["validation"], result["baseline"]
    assert found["bleu"] > 90 > beside["nearest_target"]["bleu"]
    assert found["chrf"] > 95 > beside["copied_source"]["chrf"]
    assert found["loss"] < 0.2 < beside["unigram"]["loss"]
    rows = read(tables["validation"])
    wanted, sources = [row["target"] for row in rows], [row["source"] for row in rows]
    copied = beside["copied_source"]
    assert copied["bleu"] == pytest.approx(BLEU().corpus_score(sources, [wanted]).score)
    assert copied["chrf"] == pytest.approx(CHRF().corpus_score(sources, [wanted]).score)
    samples = [json.loads(line) for line in (reference / "samples.jsonl").open()]
    assert [sample["reference"] for sample in samples] == wanted
    made = [sample["prediction"] for sample in samples]
    assert found["chrf"] == pytest.approx(CHRF().corpus_score(made, [wanted]).score)
    assert_held_out_agrees(reference)
    assert_choices_explained(reference)


def test_plain_transformers_gives_the_reported_loss_and_the_same_texts(reference, tables) -> None:
    rows = read(tables["validation"])
    found = json.loads((reference / "evaluation.json").read_text())["validation"]
    loss, count = plain_loss(reference / "final", rows)
    assert found["tokens"] == count
    assert found["loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
    best = min(metrics(reference), key=lambda line: line.get("validation_loss", 9))
    assert best["validation_loss"] == pytest.approx(loss, rel=1e-3, abs=1e-5)
    model = AutoModelForSeq2SeqLM.from_pretrained(reference / "final").eval()
    own = AutoTokenizer.from_pretrained(reference / "final")
    samples = [json.loads(line) for line in (reference / "samples.jsonl").open()]
    for sample in samples[:6]:
        made = model.generate(**own(sample["prompt"], return_tensors="pt"))
        assert own.decode(made[0], skip_special_tokens=True) == sample["prediction"]


@pytest.mark.parametrize(
    ("size", "changes"),
    [(1, ()), (3, ()), (3, ("model.architecture=transformer", "model.config.hidden_dropout=0.2",
                            "model.config.attention_dropout=0.1"))],
)  # fmt: skip
def test_the_micro_batch_changes_no_figure_with_dropout_and_smoothing(
    command, call, tmp_path, size, changes
) -> None:
    if changes:
        bart = ("model.config.d_model", "model.config.dropout")
        command = [*(key for key in command if not str(key).startswith(bart)), *changes]
        command.append("model.config.hidden_size=32")
    line = (*command, f"train.micro_batch_size={size}", "train.max_steps=12")
    runs = [tmp_path / "small", tmp_path / "whole"]
    assert call(*line, "--output-dir", runs[0])["code"] == 0
    whole = changed(line, "train.micro_batch_size=8")
    assert call(*whole, "--output-dir", runs[1])["code"] == 0
    assert_close(*runs, rel=2e-3, abs=1e-5)


def test_a_run_that_is_killed_or_repeated_is_bit_identical(
    reference, command, call, trials, tmp_path
) -> None:
    run = tmp_path / "killed"
    resume_killed(trials, call, command, run)
    assert_same(run, reference)


def test_a_translator_without_progress_stops_early_and_keeps_its_best(
    reference, tables, call, tmp_path
) -> None:
    """Trained further at a rate that only makes it worse."""
    line = ("finetune", "--csv", tables["train"], f"data.validation_files={tables['validation']}",
            "--model", reference, "train.objective=sequence_to_sequence", "evaluation.responses=0",
            "train.learning_rate=0.05", "train.warmup_steps=0", "train.max_steps=40",
            "train.eval_steps=2", "train.early_stopping_patience=2", "train.compile=false",
            "train.global_batch_size=8", "--output-dir", tmp_path / "run")  # fmt: skip
    result = call(*line)
    assert result["code"] == 0, result["said"]
    measured = {each["step"]: each["validation_loss"] for each in metrics(tmp_path / "run")
                if "validation_loss" in each}  # fmt: skip
    best = min(measured, key=lambda step: measured[step])
    assert result["step"] == max(measured) == best + 4 < 40
    loss, _ = plain_loss(tmp_path / "run" / "final", read(tables["validation"]))
    assert loss == pytest.approx(measured[best], rel=1e-3, abs=1e-5)


def test_two_processes_give_what_one_gives(command, llmkit, tmp_path) -> None:
    assert_processes_agree(llmkit, (*command, "train.max_steps=12"), tmp_path, rel=2e-3)


def test_low_rank_updates_end_merged_and_resume_to_the_bit(
    reference, tables, call, tmp_path
) -> None:
    pytest.importorskip("peft")
    keys = ("train.objective=sequence_to_sequence", "model.lora.r=4", "train.max_steps=8",
            "train.save_steps=2", "train.global_batch_size=8", "train.compile=false",
            "train.load_best_model_at_end=false", "evaluation.responses=2")  # fmt: skip
    line = finetuning(tables, "--model", reference, *keys)
    run, _ = assert_resumes_to_the_bit(call, line, tmp_path)
    assert weights(run).keys() == weights(reference).keys()


@pytest.mark.parametrize("kind", ["t5", "mt5", "bart"])
def test_a_model_of_transformers_is_trained_with_its_prefix_and_its_own_loss(
    kind, tables, call, tmp_path
) -> None:
    own = (pairs.bart_tokenizer if kind == "bart" else pairs.t5_tokenizer)()
    base = pairs.save(getattr(pairs, kind)(own), own, tmp_path / "base")
    run, prefix = tmp_path / "run", "translate: "
    line = ("finetune", "--csv", tables["train"], f"data.validation_files={tables['validation']}",
            "--model", base, "train.objective=sequence_to_sequence", f"data.prefix={prefix}",
            "train.learning_rate=1e-2", "train.max_steps=3", "train.global_batch_size=8",
            "train.compile=false", "train.load_best_model_at_end=false")  # fmt: skip
    before = call(*line, "train.max_steps=0", "--output-dir", tmp_path / "before")
    assert before["code"] == 0, before["said"]
    loss, count = plain_loss(base, read(tables["validation"]), prefix)
    assert before["validation"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert before["validation"]["tokens"] == count
    result = call(*line, "--output-dir", run)
    assert result["code"] == 0, result["said"]
    loss, _ = plain_loss(run / "final", read(tables["validation"]), prefix)
    assert result["validation"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert result["validation"]["loss"] < before["validation"]["loss"]
    assert type(AutoTokenizer.from_pretrained(run / "final")) is type(
        AutoTokenizer.from_pretrained(base)
    )


def test_label_smoothing_is_that_of_transformers() -> None:
    from llmkit.training.tasks.responses.sequence_to_sequence import TargetLoss

    own = pairs.bart_tokenizer()
    model = pairs.bart(own).eval()
    batch = own(["one two", "three"], text_target=["eins zwei", "drei"], padding=True,
                return_tensors="pt")  # fmt: skip
    labels = batch["labels"].masked_fill(batch["labels"] == own.pad_token_id, -100)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    given = {**inputs, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels)}
    theirs = LabelSmoother(0.1)(model(**given), labels)
    ours = TargetLoss(0.1).sums(model, {**given, "targets": labels})
    count = int((labels != -100).sum())
    assert float(ours["objective"].detach()) / count == pytest.approx(theirs.item(), rel=1e-6)
    logits = model(**inputs, labels=labels)
    assert float(ours["loss"].detach()) / count == pytest.approx(logits.loss.item(), rel=1e-6)
    wrong = functional.cross_entropy(logits.logits[:1].flatten(0, 1), labels[0])
    assert wrong.item() != pytest.approx(logits.loss.item(), rel=1e-3)


def test_metrics_are_measured_after_every_nth_validation(command, call, tmp_path) -> None:
    line = (*command, "train.max_steps=6", "train.eval_steps=2", "evaluation.responses=3",
            "evaluation.responses_every=2", "--output-dir", tmp_path / "run")  # fmt: skip
    assert call(*line)["code"] == 0
    shown = [line for line in metrics(tmp_path / "run") if "samples" in line]
    assert [line["step"] for line in shown] == [2, 4, 6]
    assert ["answers" in line for line in shown] == [False, True, False]
    assert shown[1]["answers"].keys() == {"bleu", "chrf", "rougeL"}


def test_a_dry_run_reports_the_data_and_writes_nothing(call, tmp_path) -> None:
    rows = [("one two", "eins zwei"), ("one two", "eins  zwei"), ("three", "drei"), ("", "vier")]
    rows += pairs.word_pairs(5, 40)
    table = write_table(tmp_path / "table.csv", rows, ("English", "Deutsch"))
    long = "data.max_target_length=3"
    report = call("finetune", "--csv", table, *SMALL, long, "--dry-run", "-o", tmp_path / "run")
    assert report["code"] == 0, report["said"]
    assert report["columns"] == {"source": "English", "target": "Deutsch"}
    assert report["architecture"] == "bart"
    assert report["blank"]["count"] == 1
    assert report["lengths"]["train target"]["truncated"] > 0
    assert "truncated after 3 tokens" in report["said"]
    assert not (tmp_path / "run").exists()


def test_empty_targets_are_refused_with_their_rows(call, tmp_path) -> None:
    rows = [("one", "eins"), ("two", " "), ("three", "")]
    table = write_table(tmp_path / "table.csv", rows, PAIR)
    found = call("finetune", "--csv", table, *SMALL, "-o", tmp_path / "run")
    assert found["code"] == 65
    assert "2 rows of data.train_files with an empty target" in found["error"]["what"]
    assert "rows 2, 3" in found["error"]["where"]


def test_a_model_without_a_decoder_is_refused(call, tables, tmp_path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=340, hidden_size=32, num_hidden_layers=1, intermediate_size=32,
                        num_attention_heads=2)  # fmt: skip
    base = pairs.save(BertForMaskedLM(config), pairs.bart_tokenizer(), tmp_path / "base")
    line = ("finetune", "--csv", tables["train"], "--model", base, "-o", tmp_path / "run")
    found = call(*line, "train.objective=sequence_to_sequence")
    assert found["code"] == 78
    assert "no encoder-decoder model" in found["error"]["what"]
    own = pairs.t5_tokenizer()
    t5 = pairs.save(pairs.t5(own), own, tmp_path / "t5")
    found = call("finetune", "--csv", tables["train"], "--model", t5, "train.objective=completion")
    assert found["code"] == 78
    assert "train.objective=sequence_to_sequence" in found["error"]["next"]


@pytest.mark.parametrize("config", [CONFIG, CONFIGS / "finetune-summarization.yaml"])
def test_the_shipped_configs_train_a_model(tables, call, tmp_path, config) -> None:
    run = tmp_path / "run"
    small = [key for key in SMALL if key.startswith(("model.", "tokenizer."))]
    line = ("finetune", config, "--csv", tables["train"], *small, "train.num_train_epochs=null",
            "train.max_steps=2", "--output-dir", run)  # fmt: skip
    result = call(*line)
    assert result["code"] == 0, result["said"]
    assert {"bleu", "chrf", "rougeL"} <= result["validation"].keys()
    assert "AutoModelForSeq2SeqLM" in (run / "final" / "README.md").read_text()
    assert "BLEU" in (run / "report.html").read_text()


@pytest.mark.parametrize("kind", ["mbart", "mbart50", "nllb", "marian", "m2m"])
def test_translators_of_transformers_are_trained_and_used_with_their_languages(
    kind, tables, call, tmp_path
) -> None:
    if kind in ("marian", "m2m"):
        pytest.importorskip("sentencepiece")
    files = tmp_path / "files"
    files.mkdir()
    own = getattr(pairs, f"{kind}_tokenizer")(*([files] if kind in ("marian", "m2m") else []))
    model = getattr(pairs, {"mbart50": "mbart", "nllb": "m2m"}.get(kind, kind))(own)
    base = pairs.save(model, own, tmp_path / "base")
    codes = {"mbart": ("en_XX", "de_DE"), "mbart50": ("en_XX", "de_DE"), "m2m": ("en", "de"),
             "nllb": ("eng_Latn", "deu_Latn")}  # fmt: skip
    given = [
        f"data.{side}_lang={code}"
        for side, code in zip(("source", "target"), codes.get(kind, ()), strict=False)
    ]
    run = tmp_path / "run"
    line = ("finetune", "--csv", tables["train"], f"data.validation_files={tables['validation']}",
            "--model", base, "train.objective=sequence_to_sequence", "train.learning_rate=1e-2",
            "train.max_steps=3", "train.global_batch_size=8", "train.compile=false",
            "evaluation.responses=2", "train.load_best_model_at_end=false")  # fmt: skip
    if given:
        refused = call(*line, "--output-dir", tmp_path / "refused")
        assert refused["code"] == 78
        assert "data.source_lang" in refused["error"]["where"]
    result = call(*line, *given, "--output-dir", run)
    assert result["code"] == 0, result["said"]
    final = AutoModelForSeq2SeqLM.from_pretrained(run / "final").eval()
    saved = AutoTokenizer.from_pretrained(run / "final")
    if given:
        saved.src_lang, saved.tgt_lang = codes[kind]
    nll, count = 0.0, 0
    for row in read(tables["validation"]):
        batch = saved(row["source"], text_target=row["target"], return_tensors="pt")
        with torch.no_grad():
            nll += float(final(**batch).loss) * batch["labels"].numel()
        count += batch["labels"].numel()
    assert result["validation"]["loss"] == pytest.approx(nll / count, rel=1e-4)
    found = call("generate", "--model", run, "--prompt", "one two three")
    assert found["code"] == 0, found["said"]
    made = final.generate(**saved("one two three", return_tensors="pt"))[0]
    assert found["tokens"] == made[1 : 1 + len(found["tokens"])].tolist()
    assert found["text"] == saved.decode(made, skip_special_tokens=True)
