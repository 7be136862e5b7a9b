"""`llmkit predict` as a user runs it: rows in, as many predictions out, in order."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.cli import app
from llmkit.commands import predict
from llmkit.models import build, classifier
from llmkit.models import tokenizer as tokenizers
from llmkit.models.classifier import ClassifierHead
from tests.jobs import write_table

TEXTS = [f"text {number} " + "with words " * (number % 7) for number in range(60)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small classifier that was trained on the column `message`."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = tokenizers.train_bpe_with_frame(TEXTS, 300)
    shape = {"hidden_size": 32, "num_hidden_layers": 2}
    config = classifier.new_config("bert", shape, tokenizer, 24)
    ClassifierHead("single_label_classification", ("ham", "spam")).describe(
        config, tokenizer.pad_token_id
    )
    classifier.remember_columns(config, ["message"])
    made = build.classifier(config, seed=0)
    torch.nn.init.normal_(made.classifier.weight)
    made.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.csv"
    rows = ((number, text, "?") for number, text in enumerate(TEXTS))
    return write_table(path, rows, ("id", "message", "label"))


@pytest.fixture
def call(capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process: exit code, stdout and stderr."""

    def run(
        *arguments: object, stdin: bytes | None = None, command: str = "predict"
    ) -> tuple[int, str, str]:
        if stdin is not None:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = app.run_command([command, *map(str, arguments)])
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
    _, out, _ = call("--model", model, "--csv", table, "predict.columns=[]", *keys)
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
        assert [each["message"] for each in found] == TEXTS
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


def test_a_table_keeps_its_columns_in_their_order_and_gains_those_of_the_prediction(
    call, model, table, tmp_path
) -> None:
    code, out, said = call("--model", model, "--csv", table, "-o", tmp_path / "a.csv", "--json")
    assert code == 0, said
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    own = ["label", "probability_ham", "probability_spam"]
    assert list(rows[0]) == ["id", "message", "input_label", *own]
    result = json.loads(out)
    labels = [row["label"] for row in rows]
    assert result["labels"] == {name: labels.count(name) for name in set(labels)}
    unsure = sum(max(float(row[name]) for name in own[1:]) < 0.6 for row in rows)
    assert result["below_0.6"] == unsure
    for label in set(labels):
        assert f"{label} {labels.count(label)}" in said
    call("--model", model, "--csv", table, "-o", tmp_path / "b.csv", "predict.columns=id")
    assert (tmp_path / "b.csv").read_text().splitlines()[0] == f"id,message,{','.join(own)}"


JSON = [{"text": text, "id": number} for number, text in enumerate(TEXTS[:5])]


@pytest.mark.parametrize("keys", [(), ("--json",), ("data.format=jsonl",)])
@pytest.mark.parametrize("column", ["text", "message", "body"])
@pytest.mark.parametrize("how", ["lines", "list", "gzip", "utf-16", "csv"])
def test_rows_of_a_pipe_are_read_by_column_and_keep_their_other_values(
    call, model, keys, column, how
) -> None:
    rows = [{column: row["text"], "id": row["id"]} for row in JSON]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if how == "list":
        content = json.dumps(rows, indent=1).encode()
    elif how == "gzip":
        content = gzip.compress(content)
    elif how == "utf-16":
        content = content.decode().encode("utf-16")
    elif how == "csv" and not keys:
        content = "".join(f"{row[column]},{row['id']}\n" for row in rows).encode()
        content = f"{column},id\n".encode() + content
    given = ("data.text_column=body",) if column == "body" else ()
    code, out, said = call("--model", model, *keys, *given, stdin=content)
    assert code == 0, said
    assert [each["text"] for each in lines(out)] == [row["text"] for row in JSON]
    assert [int(each["columns"]["id"]) for each in lines(out)] == [0, 1, 2, 3, 4]


def test_a_pipe_of_something_else_is_refused_with_its_cause(call, model) -> None:
    for content, cause in ((b"PK\x03\x04 word/", "Word document"), (b"%PDF-1.4\n", "PDF")):
        code, out, said = call("--model", model, stdin=content)
        assert (code, out) == (65, "")
        assert f"stdin is a {cause}" in said
    code, _, said = call("--model", model, stdin=b'{"text": "a"}\n{"txt": "b"}\n')
    assert code == 65
    assert "stdin:2" in said
    code, _, said = call("--model", model, "predict.columns=nr", stdin=b'{"text": "a"}\n')
    assert (code, "no column 'nr'" in said) == (65, True)


def test_each_line_of_a_pipe_is_answered_when_it_arrives(model) -> None:
    command = [sys.executable, "-m", "llmkit", "predict", "--model", str(model), "--quiet"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for text in ("first", "second"):
        process.stdin.write(f"{text}\n".encode())
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["text"] == text
    process.stdin.close()
    assert process.wait(timeout=60) == 0


@pytest.fixture
def of_pairs(model, tmp_path) -> Path:
    """The same classifier, trained on two columns."""
    directory = tmp_path / "pairs"
    shutil.copytree(model, directory)
    noted = json.loads((directory / "config.json").read_text())
    noted["llmkit"]["text_column"] = ["premise", "hypothesis"]
    (directory / "config.json").write_text(json.dumps(noted))
    return directory


@pytest.mark.parametrize("how", ["file", "pipe", "json", "named", "evaluate"])
def test_a_classifier_of_pairs_refuses_single_texts(call, of_pairs, tmp_path, how) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nfine,ham\nbad,spam\n")
    given = {
        "file": ("--csv", path),
        "named": ("--csv", path, "data.text_column=text"),
        "pipe": (),
        "json": (),
        "evaluate": ("--csv", path),
    }[how]
    stdin = {"pipe": b"fine\n", "json": b'{"text": "fine"}\n'}.get(how)
    command = "evaluate" if how == "evaluate" else "predict"
    code, out, said = call("--model", of_pairs, *given, stdin=stdin, command=command)
    assert (code, out) == (65, "")
    assert "'premise' and 'hypothesis'" in said


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_classifier_of_single_texts_refuses_pairs(call, model, tmp_path, command) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("premise,hypothesis,label\nfine,a,ham\nbad,b,spam\n")
    for given in ((), ("data.text_column=[premise, hypothesis]",)):
        code, out, said = call("--model", model, "--csv", path, *given, command=command)
        assert (code, out) == (65, "")
        assert "trained on one text, from 'message'" in said


def test_two_processes_write_what_one_does(call, model, table, tmp_path, torchrun) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    job = ("--model", model, "--csv", table, "predict.precision=fp32", "--json", "--output")
    assert call(*job, one)[0] == 0
    done = torchrun("predict", *job, two)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == 60
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_two_processes_evaluate_a_classifier_as_one_does(call, model, tmp_path, llmkit) -> None:
    path = tmp_path / "rows.csv"
    rows = "".join(f"{text},{'ham' if n % 3 else 'spam'}\n" for n, text in enumerate(TEXTS))
    path.write_text(f"message,label\n{rows}")
    job = ("--model", model, "--csv", path, "evaluation.precision=fp32", "--json")
    one = json.loads(call(*job, command="evaluate")[1])
    done = llmkit("evaluate", *job, processes=2)
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)
    assert one["confusion_matrix"] == two["confusion_matrix"]
    for key in ("accuracy", "loss"):
        assert one[key] == pytest.approx(two[key], rel=1e-12), key


def test_several_processes_refuse_a_pipe(call, model, monkeypatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29999")
    code, _, said = call("--model", model, stdin=b"fine\n")
    assert code == 2
    assert "--csv FILE" in said


@pytest.mark.parametrize(
    "content", ["id,message\n1,fine\n2,bad\n", "a,message,b\n1,fine,x\n2,bad,y\n"]
)
def test_evaluate_says_that_a_file_has_no_labels(call, model, tmp_path, content) -> None:
    path = tmp_path / "new.csv"
    path.write_text(content)
    code, out, said = call("--model", model, "--csv", path, command="evaluate")
    assert (code, out) == (65, "")
    assert "new.csv has no clear label column" in said
    assert f"llmkit predict --model {model} --csv {path}" in said


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
def test_bad_input_is_reported_with_its_row(
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


def test_a_model_that_is_not_a_classifier_and_no_model_are_reported(call, table, tmp_path) -> None:
    config = build.model_config("llama", {"hidden_size": 32, "num_hidden_layers": 1}, 64, 8, {})
    build.causal_model(config, 0).save_pretrained(tmp_path)
    assert call("--model", tmp_path, "--csv", table)[0] == 65
    assert call("--csv", table)[0] == 2
    assert call("--model", tmp_path / "nowhere", "--csv", table)[0] == 66


def test_a_name_that_is_not_utf8_is_read_and_written(call, model, table, tmp_path) -> None:
    path, output = tmp_path / "caf\udce9.csv", tmp_path / "o\udce9.jsonl"
    shutil.copy(table, path)
    code, out, said = call("--model", model, "--csv", path, "--output", output, "--json")
    assert code == 0, said
    assert json.loads(out)["output"] == str(output)
    assert len(output.read_text().splitlines()) == 60
    path.write_text("message,x\nfine\n")
    code, out, said = call("--model", model, "--csv", path, "--json")
    assert code == 65
    assert str(path) in json.loads(out.splitlines()[-1])["error"]["where"]


def test_progress_counts_rows_when_they_are_labelled_not_when_they_are_read() -> None:
    done: list[int] = []
    progress = predict.RowProgress(done.append)
    for window in (1600, 1600, 800):
        before = sum(done)
        for _ in range(8):
            progress.read(window // 8)
        assert sum(done) == before
        progress.labelled(0.5)
        assert sum(done) == before + window // 2
        progress.labelled(0.5)
        assert sum(done) == before + window


@pytest.mark.parametrize("how", ["file", "json", "output", "quiet", "resumed", "pipe", "pairs"])
def test_counts_of_labels_come_last_and_once(call, model, table, of_pairs, tmp_path, how) -> None:
    out, arguments, given = tmp_path / "out.csv", ["--model", model], {"stdin": None}
    arguments += {"pipe": [], "pairs": ["--csv", tmp_path / "pairs.csv"]}.get(how, ["--csv", table])
    if how == "pairs":
        write_table(tmp_path / "pairs.csv", zip(TEXTS, TEXTS, strict=True),
                    ("premise", "hypothesis"))  # fmt: skip
        arguments[1] = of_pairs
    if how == "pipe":
        given["stdin"] = "\n".join(TEXTS).encode()
    if how not in ("file", "pipe"):
        arguments += ["--output", out]
    if how == "resumed":
        assert call(*arguments)[0] == 0
    code, said, err = call(
        *arguments, *{"json": ["--json"], "quiet": ["--quiet"]}.get(how, []), **given
    )
    assert code == 0, err
    found = re.findall(r"(?m)^(?:ham|spam) \d+(?:, (?:ham|spam) \d+)?(?:; \d+ rows? below 0\.6)?$",
                       said + err)  # fmt: skip
    if how == "quiet":
        assert (found, said) == ([], "")
        return
    assert len(found) == 1
    assert sum(map(int, re.findall(r"(?:ham|spam) (\d+)", found[0]))) == len(TEXTS)
    last = err if how in ("file", "json", "pipe") else said
    assert last.splitlines()[-1] == found[0]
    if how == "json":
        assert sum(json.loads(said)["labels"].values()) == len(TEXTS)
    else:
        assert "labels.ham" not in said


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_rows_that_are_read_in_part_are_counted(call, model, tmp_path, command) -> None:
    path, long = tmp_path / "new.csv", "with words " * 60
    write_table(path, [(long, "ham"), ("short", "spam"), (long, "spam")], ("message", "label"))
    code, _, said = call("--model", model, "--csv", path, command=command)
    assert code == 0
    wanted = r"2 rows longer than (\d+) tokens: only the first (\d+) of each were read"
    [(longest, read)] = re.findall(wanted, said)
    assert longest == read
    limit = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    assert int(longest) <= limit
