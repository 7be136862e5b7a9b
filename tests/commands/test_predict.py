"""`llmkit predict` as a user runs it: rows in, as many predictions out, in order."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit import cli
from llmkit.models import build, classifier
from llmkit.models import tokenizer as tokenizers
from llmkit.models.classifier import Head

TEXTS = [f"text {number} " + "with words " * (number % 7) for number in range(60)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small classifier that was trained on the column `message`."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = tokenizers.train_bpe_with_frame(TEXTS, 300)
    shape = {"hidden_size": 32, "num_hidden_layers": 2}
    config = classifier.new_config("bert", shape, tokenizer, 24)
    Head("single_label_classification", ("ham", "spam")).describe(config, tokenizer.pad_token_id)
    classifier.remember(config, ["message"])
    made = build.classifier(config, seed=0)
    torch.nn.init.normal_(made.classifier.weight)
    made.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "message", "label"])
        writer.writerows([number, text, "?"] for number, text in enumerate(TEXTS))
    return path


@pytest.fixture
def call(capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process: exit code, stdout and stderr."""

    def run(*arguments: object, stdin: bytes | None = None) -> tuple[int, str, str]:
        torch.set_num_threads(1)
        if stdin is not None:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.run(["predict", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_row_gets_a_prediction_in_its_place(call, model, table) -> None:
    code, out, said = call("--model", model, "--csv", table, "predict.columns=id")
    assert code == 0, said
    found = lines(out)
    assert [each["text"] for each in found] == TEXTS
    assert [each["columns"]["id"] for each in found] == [str(n) for n in range(60)]
    for each in found:
        assert set(each["probabilities"]) == {"ham", "spam"}
        assert each["label"] == max(each["probabilities"], key=each["probabilities"].get)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_alone_is_the_row_among_others(call, model, table, precision) -> None:
    keys = (f"predict.precision={precision}",)
    _, out, _ = call("--model", model, "--csv", table, *keys)
    alone = call("--model", model, *keys, stdin=f"{TEXTS[13]}\n".encode())[1]
    assert lines(alone) == [lines(out)[13]]


def test_lines_of_a_pipe_are_texts_and_blank_ones_count(call, model) -> None:
    code, out, said = call("--model", model, stdin="hello\r\n\nlast 😀".encode())
    assert code == 0, said
    assert [each["text"] for each in lines(out)] == ["hello", "", "last 😀"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_an_output_file_has_the_predictions_and_stdout_the_summary(
    call, model, table, tmp_path, suffix
) -> None:
    path = tmp_path / f"out.{suffix}"
    arguments = (
        "--model",
        model,
        "--csv",
        table,
        "--output",
        path,
        "--json",
        "predict.columns='*'",
    )
    code, out, said = call(*arguments)
    assert code == 0, said
    assert json.loads(out)["examples"] == 60
    if suffix == "csv":
        with path.open(newline="") as file:
            found = list(csv.DictReader(file))
        assert [each["id"] for each in found] == [str(n) for n in range(60)]
        assert {each["input_label"] for each in found} == {"?"}
        assert [each["text"] for each in found] == TEXTS
    else:
        assert [each["columns"]["label"] for each in lines(path.read_text())] == ["?"] * 60
    before = path.read_bytes()
    assert call(*arguments)[0] == 0
    assert path.read_bytes() == before


def test_json_lines_go_in_as_well(call, model, tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"message": text, "n": 1}) + "\n" for text in TEXTS[:3]))
    code, out, said = call("--model", model, "--csv", path, "predict.columns=n")
    assert code == 0, said
    assert [each["columns"] for each in lines(out)] == [{"n": 1}] * 3


def test_another_table_has_its_own_columns(call, model, tmp_path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("text,stars\nfine,5\n")
    code, out, said = call("--model", model, "--csv", path)
    assert code == 0, said
    assert lines(out)[0]["text"] == "fine"


def test_a_dry_run_counts_the_rows_and_predicts_nothing(call, model, table) -> None:
    code, out, _ = call("--model", model, "--csv", table, "--dry-run", "--json")
    found = json.loads(out)
    assert (code, found["rows"], found["labels"]) == (0, 60, ["ham", "spam"])


def test_a_reader_that_leaves_early_ends_it_quietly(model, tmp_path) -> None:
    path = tmp_path / "many.csv"
    path.write_text("message\n" + "a row\n" * 60_000)
    command = [
        sys.executable,
        "-m",
        "llmkit",
        "predict",
        "--model",
        model,
        "--csv",
        path,
        "--quiet",
    ]
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert json.loads(process.stdout.readline())["text"] == "a row"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141


@pytest.mark.parametrize(
    ("content", "arguments", "code", "said"),
    [
        ("message\nfine\n", ("predict.columns=nr",), 65, "no column 'nr'"),
        ('message\n"never closed\n', (), 65, "quot"),
        ("message,x\nfine,1\nfine\n", (), 65, "row 2"),
        ("message\n", (), 66, "no row"),
        ("", (), 66, "holds no text"),
        ("a,b\nx,y\n", (), 65, "the columns are 0 'a', 1 'b'"),
    ],
)
def test_bad_input_is_told_with_its_row(
    call, model, tmp_path, content, arguments, code, said
) -> None:
    path, output = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    path.write_text(content)
    found = call("--model", model, "--csv", path, "--output", output, *arguments)
    assert found[0] == code, found[2]
    assert said in found[2]
    assert not output.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.csv"]


def test_undecodable_bytes_of_a_pipe_are_named_with_their_line(call, model) -> None:
    code, _, said = call("--model", model, stdin=b"fine\nb\xf0d\n")
    assert code == 65
    assert "stdin:2" in said
    assert "0xf0" in said


def test_a_model_that_is_no_classifier_and_none_at_all_are_told(call, table, tmp_path) -> None:
    config = build.model_config("llama", {"hidden_size": 32, "num_hidden_layers": 1}, 64, 8, {})
    build.causal_model(config, 0).save_pretrained(tmp_path)
    assert call("--model", tmp_path, "--csv", table)[0] == 65
    assert call("--csv", table)[0] == 2
    assert call("--model", tmp_path / "nowhere", "--csv", table)[0] == 66
