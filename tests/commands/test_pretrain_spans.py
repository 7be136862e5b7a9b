"""`llmkit pretrain train.objective=span_corruption` as a user runs it."""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.jobs import assert_close, assert_resumes_to_the_bit, changed, metrics, tiny

LINE = tiny(
    "train.objective=span_corruption", "model.config.hidden_size=32",
    "tokenizer.vocab_size=420", "data.block_size=24", "train.max_steps=6", "train.save_steps=2",
    "train.eval_steps=3", "data.document=line", "model.config.dropout=0.1",
)  # fmt: skip


def test_spans_are_learned_and_a_resumed_run_is_bit_identical(corpus, call, tmp_path) -> None:
    run, result = assert_resumes_to_the_bit(call, ("pretrain", "--text", corpus, *LINE), tmp_path)
    assert "resuming from step 4" in result["said"], result["said"]
    assert {"loss", "accuracy"} <= result["validation"].keys()
    assert result["baseline"]["unigram"]["loss"] > 0
    small, other = changed(LINE, "train.micro_batch_size=3"), tmp_path / "small"
    assert call("pretrain", "--text", corpus, *small, "-o", other)["code"] == 0
    assert_close(run, other, rel=2e-3, abs=1e-4)
    shown = [sample for line in metrics(run) for sample in line.get("samples", [])]
    assert all("<extra_id_0>" in sample["source"] + sample["target"] for sample in shown)


def test_two_processes_give_what_one_gives(corpus, call, llmkit, tmp_path) -> None:
    line = changed(LINE, "train.precision=fp32", "train.max_steps=3")
    one, two = tmp_path / "one", tmp_path / "two"
    assert call("pretrain", "--text", corpus, *line, "-o", one)["code"] == 0
    done = llmkit("pretrain", "--text", corpus, *line, "-o", two, processes=2)
    assert done.returncode == 0, done.stderr
    assert_close(one, two, rel=2e-3, abs=1e-4)


def test_the_model_is_fine_tuned_and_loaded_by_transformers(corpus, call, tmp_path) -> None:
    run, table = tmp_path / "run", tmp_path / "pairs.jsonl"
    short = changed(LINE, "train.max_steps=2")
    assert call("pretrain", "--text", corpus, *short, "-o", run)["code"] == 0
    own = AutoTokenizer.from_pretrained(run / "final")
    model = AutoModelForSeq2SeqLM.from_pretrained(run / "final").eval()
    assert own("<extra_id_0>")["input_ids"] == [own.convert_tokens_to_ids("<extra_id_0>"), 1]
    with torch.no_grad():
        batch = own("the cat", text_target="the dog", return_tensors="pt")
        assert torch.isfinite(model(**batch).loss)
    rows = [{"source": f"cat {n}", "target": f"dog {n}"} for n in range(30)]
    table.write_text("\n".join(map(json.dumps, rows)) + "\n")
    tuned = call("finetune", "--csv", table, "--model", run, "train.objective=sequence_to_sequence",
                 "train.max_steps=2", "train.compile=false", "-o", tmp_path / "tuned")  # fmt: skip
    assert tuned["code"] == 0, tuned["said"]


def test_a_tokenizer_without_sentinels_and_other_models_are_refused(corpus, call, tmp_path) -> None:
    short = changed(LINE, "train.max_steps=2", "tokenizer.vocab_size=auto")
    causal = [key for key in tiny("train.max_steps=1") if "max_new" not in key]
    assert call("pretrain", "--text", corpus, *causal, "-o", tmp_path / "causal")["code"] == 0
    more = [key for key in short if not key.startswith("tokenizer")]
    found = call("pretrain", "--text", corpus, *more, "-o", tmp_path / "x",
                 f"tokenizer.name_or_path={tmp_path / 'causal'}")  # fmt: skip
    assert found["code"] == 78
    assert "sentinels" in found["error"]["what"]
    found = call("pretrain", "--text", corpus, "--model", tmp_path / "causal",
                 "train.objective=span_corruption", "-o", tmp_path / "y")  # fmt: skip
    assert found["code"] == 78
    assert "causal language model" in found["error"]["what"]
