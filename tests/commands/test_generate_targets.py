"""`llmkit generate` and `evaluate` with an encoder-decoder model, as a user runs them."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest
import torch
from sacrebleu.metrics import CHRF
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from llmkit.models.classifier import remember_columns
from tests import pairs
from tests.jobs import write_table


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BART that remembers its columns and its prefix."""
    own = pairs.bart_tokenizer()
    made = pairs.bart(own)
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(8.0)
    remember_columns(made.config, ["source"], ["target"], {"prefix": "to German: "})
    made.generation_config.update(num_beams=2, max_new_tokens=6, max_length=None)
    return pairs.save(made, own, tmp_path_factory.mktemp("models") / "bart")


def plain(model: Path, text: str) -> str:
    own = AutoTokenizer.from_pretrained(model)
    made = AutoModelForSeq2SeqLM.from_pretrained(model).eval()
    row = made.generate(**own("to German: " + text, return_tensors="pt"))[0]
    return str(own.decode(row, skip_special_tokens=True))


def test_translations_come_in_order_and_a_killed_job_resumes(model, call, trials, tmp_path) -> None:
    sources = [source for source, _ in pairs.word_pairs(9, 40)]
    file = tmp_path / "sources.txt"
    file.write_text("\n".join(sources) + "\n")
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    line = ("generate", "--model", model, "--prompts-file", file,
            "generation.micro_batch_size=4")  # fmt: skip
    result = call(*line, "--output", whole)
    assert (result["code"], result["samples"]) == (0, 40), result["said"]
    records = [json.loads(each) for each in whole.open()]
    assert [record["prompt"] for record in records] == sources
    assert [record["text"] for record in records[:3]] == [plain(model, s) for s in sources[:3]]
    process = trials.start(*line, "--output", stopped)
    process.until_lines(stopped, 5)
    process.end(signal.SIGKILL)
    again = call(*line, "--output", stopped)
    assert again["code"] == 0, again["said"]
    assert stopped.read_bytes() == whole.read_bytes()


def test_keys_of_other_models_are_refused(model, call) -> None:
    found = call("generate", "--model", model, "--prompt", "one", "generation.explain=2")
    assert found["code"] == 78
    assert "generation.explain" in found["error"]["where"]
    found = call("generate", "--model", model, "--prompt", "one",
                 "generation.num_return_sequences=3")  # fmt: skip
    assert found["code"] == 78
    assert "num_beams" in found["error"]["next"]


def test_the_loss_and_the_metrics_on_references_are_those_of_the_libraries(
    model, call, tmp_path
) -> None:
    rows = pairs.word_pairs(4, 8)
    table = write_table(tmp_path / "test.csv", rows, ("source", "target"))
    found = call("evaluate", "--model", model, "--csv", table)
    assert found["code"] == 0, found["said"]
    own = AutoTokenizer.from_pretrained(model)
    made = AutoModelForSeq2SeqLM.from_pretrained(model).eval()
    nll, count = 0.0, 0
    for source, target in rows:
        batch = own("to German: " + source, text_target=target, return_tensors="pt")
        with torch.no_grad():
            nll += made(**batch).loss.item() * batch["labels"].numel()
        count += batch["labels"].numel()
    assert found["tokens"] == count
    assert found["loss"] == pytest.approx(nll / count, rel=1e-4)
    texts = [plain(model, source) for source, _ in rows]
    chrf = CHRF().corpus_score(texts, [[target for _, target in rows]]).score
    assert found["chrf"] == pytest.approx(chrf)
    assert found["protocol"]["generation"]["num_beams"] == 2
    columns = ("evaluation.prompt_column=source", "evaluation.reference_column=target")
    other = call("evaluate", "--model", model, "--csv", table, *columns, 'data.prefix=""')
    assert other["code"] == 0, other["said"]
    assert other["loss"] != pytest.approx(found["loss"], rel=1e-5)


@pytest.mark.parametrize("command", ["chat", "export"])
def test_commands_for_other_models_refuse_it(model, call, command, tmp_path) -> None:
    more = ["--format", "safetensors", "--output", tmp_path / "x"] if command == "export" else []
    found = call(command, "--model", model, *more)
    assert found["code"] == 78
    assert "encoder-decoder model" in found["error"]["what"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_predict_writes_a_text_for_each_row_and_resumes(model, call, tmp_path, suffix) -> None:
    rows = [(n, source) for n, (source, _) in enumerate(pairs.word_pairs(6, 20))]
    table = write_table(tmp_path / "rows.csv", rows, ("id", "source"))
    out = tmp_path / f"out.{suffix}"
    line = ("predict", "--model", model, "--csv", table)
    found = call(*line, "--output", out)
    assert (found["code"], found["examples"]) == (0, 20), found["said"]
    assert not {"labels", "below_0.6"} & found.keys()
    if suffix == "csv":
        with out.open() as file:
            written = [row["generated_text"] for row in csv.DictReader(file)]
        assert out.read_text().startswith("id,source,generated_text\n")
    else:
        records = [json.loads(each) for each in out.open()]
        written = [record["generated_text"] for record in records]
        assert [record["columns"]["id"] for record in records] == [str(n) for n, _ in rows]
    assert written[:3] == [plain(model, source) for _, source in rows[:3]]
    first = out.read_bytes()
    again = call(*line, "--output", out)
    assert again["code"] == 0, again["said"]
    assert out.read_bytes() == first


def test_two_processes_share_the_rows_and_write_what_one_writes(
    model, call, llmkit, tmp_path
) -> None:
    """Sampled texts of equal sources differ, and do not depend on who writes them."""
    rows = [pair for pair in pairs.word_pairs(7, 9) for _ in range(2)][:17]
    table = write_table(tmp_path / "rows.csv", rows, ("source", "target"))
    predict = ("predict", "--model", model, "--csv", table, "--output")
    columns = ("evaluation.prompt_column=source", "evaluation.reference_column=target")
    sampled = ("generation.do_sample=true", "generation.temperature=2")
    evaluate = ("evaluate", "--model", model, "--csv", table, *columns, *sampled)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    samples = [tmp_path / f"{n}.samples.jsonl" for n in (1, 2)]
    assert call(*predict, one)["code"] == 0
    done = llmkit(*predict, two, processes=2)
    assert done.returncode == 0, done.stderr
    assert two.read_bytes() == one.read_bytes()
    alone = call(*evaluate, "--log-samples", samples[0])
    done = llmkit(*evaluate, "--log-samples", samples[1], "--json", processes=2)
    assert done.returncode == 0, done.stderr
    assert samples[1].read_bytes() == samples[0].read_bytes()
    texts = [json.loads(line)["prediction"] for line in samples[0].open()]
    assert any(texts[n] != texts[n + 1] for n in range(0, 16, 2))
    assert json.loads(done.stdout)["bleu"] == alone["bleu"]
