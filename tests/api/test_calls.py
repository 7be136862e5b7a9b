"""The functions return what the commands print, and their numbers are those of the commands."""

from __future__ import annotations

import inspect
import json
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit import errors
from llmkit.api import calls
from llmkit.cli import app
from llmkit.cli.options import OPTIONS
from tests.api.conftest import KEYS, TRAIN, Command
from tests.jobs import assert_same, metrics

CHANGING = ("seconds", "tokens_per_second", "sequences_per_second", "examples_per_second")
PLACES = ("run_dir", "model_dir")


def lasting(result: dict[str, Any]) -> dict[str, Any]:
    """A result without times and places."""
    return {name: value for name, value in result.items() if name not in (*CHANGING, *PLACES)}


def test_importing_llmkit_loads_none_of_its_libraries_and_little_of_python() -> None:
    script = (
        "import sys; before = set(sys.modules); import llmkit; llmkit.__version__\n"
        "assert {'pretrain', 'errors'} <= set(dir(llmkit))\n"
        "print(sorted(set(sys.modules) - before))\n"
        "from llmkit import evaluate, finetune, generate, predict, pretrain\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'numpy', 'rich', 'typer', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['llmkit']\n[]\n"


def test_an_unknown_name_is_not_an_attribute() -> None:
    with pytest.raises(AttributeError, match="'pretrian'"):
        llmkit.pretrian  # noqa: B018
    assert llmkit.errors is errors


@pytest.mark.parametrize("name", ["pretrain", "finetune", "evaluate", "predict", "generate"])
def test_parameters_are_options_of_the_command(name: str) -> None:
    function = getattr(calls, name)
    flags = {flag.lstrip("-") for option in OPTIONS[name] for flag in option.names}
    taken = set(inspect.signature(function).parameters) - {"config", "keys", "rows"}
    assert {each.replace("_", "-") for each in taken} <= flags
    assert "llmkit.api" in inspect.getdoc(function)


def test_pretraining_gives_the_bytes_of_the_command(
    called: dict[str, Any], commanded: dict[str, Any]
) -> None:
    assert lasting(called) == lasting(commanded)
    assert_same(Path(called["run_dir"]), Path(commanded["run_dir"]))


def test_a_second_call_gives_the_same_bytes(
    called: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    llmkit.pretrain(text=[str(corpus)], output_dir=tmp_path / "run", quiet=True, **KEYS)
    assert_same(Path(called["run_dir"]), tmp_path / "run")


def test_a_thread_other_than_the_main_one_gives_the_same_bytes(
    called: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"text": corpus, "output_dir": tmp_path / "run", "quiet": True, **KEYS}
    thread = threading.Thread(target=llmkit.pretrain, kwargs=keys)
    thread.start()
    thread.join()
    assert_same(Path(called["run_dir"]), tmp_path / "run")


def test_the_run_records_a_command_line_that_repeats_it(
    called: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads(Path(called["run_dir"], "run.json").read_text())
    assert "train.max_steps=4" in facts["arguments"]
    [place] = [each for each in facts["arguments"] if each.startswith("output_dir=")]
    again = [each for each in facts["arguments"] if each != place]
    assert app.run_command([*again, f"output_dir={tmp_path / 'run'}"]) == 0
    assert_same(Path(called["run_dir"]), tmp_path / "run")
    page = Path(called["run_dir"], "report.html").read_text()
    assert shlex.join(["llmkit", *again[:2]]) in page


def test_a_config_file_is_overridden_by_keywords(
    called: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    other = {**KEYS, "train": {**TRAIN, "max_steps": 9}}
    config.write_text(json.dumps({**other, "output_dir": str(tmp_path / "run")}))
    llmkit.pretrain(config, text=corpus, train={"max_steps": 4}, quiet=True)
    assert_same(Path(called["run_dir"]), tmp_path / "run")


def test_evaluating_gives_the_figures_of_the_command(
    called: dict[str, Any], commanded: dict[str, Any], corpus: Path, command: Command
) -> None:
    models = [called["run_dir"], commanded["run_dir"]]
    found = llmkit.evaluate(model=models, text=corpus, quiet=True)
    options = [f"--model={model}" for model in models]
    [printed] = command("evaluate", *options, "--text", corpus)
    assert [lasting(each) for each in found.pop("models")] == [
        lasting(each) for each in printed.pop("models")
    ]
    assert lasting(found) == lasting(printed)


def test_a_config_may_name_what_the_call_does_not(
    called: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    config = tmp_path / "evaluate.yaml"
    values = {"model.name_or_path": called["run_dir"], "data.test_files": str(corpus)}
    config.write_text(json.dumps(values))
    by_config = llmkit.evaluate(config, quiet=True)
    assert lasting(by_config) == lasting(
        llmkit.evaluate(text=corpus, model=called["run_dir"], quiet=True)
    )
    assert by_config["warnings"]


def test_generating_gives_the_records_of_the_command(
    called: dict[str, Any], command: Command
) -> None:
    settings = {"max_new_tokens": 6, "num_return_sequences": 2}
    prompts = ["the cat", "how far"]
    found = llmkit.generate(
        model=called["run_dir"], prompt=prompts, generation=settings, quiet=True
    )
    keys = [f"generation.{key}={value}" for key, value in settings.items()]
    options = [f"--prompt={prompt}" for prompt in prompts]
    printed = command("generate", "--model", called["run_dir"], *options, *keys)
    assert found["generated"] == printed
    assert (found["prompts"], found["samples"]) == (2, 4)


def test_predicting_gives_the_records_of_the_command(
    classifier: dict[str, Any], reviews: Path, command: Command, tmp_path: Path
) -> None:
    fast = {"precision": "fp32"}
    model = classifier["run_dir"]
    printed = command("predict", "--model", model, "--csv", reviews, "predict.precision=fp32")
    by_file = llmkit.predict(csv=reviews, model=model, predict=fast, quiet=True)
    assert by_file["predictions"] == printed
    assert sum(by_file["labels"].values()) == by_file["examples"] == 60
    texts = [each["text"] for each in printed]
    rows = [{"text": text, "id": number} for number, text in enumerate(texts)]
    by_rows = llmkit.predict(rows=rows, model=model, predict=fast, quiet=True)["predictions"]
    assert [each.pop("columns") for each in by_rows] == [{"id": row["id"]} for row in rows]
    plain = [{key: each[key] for key in ("text", "label", "probabilities")} for each in printed]
    assert by_rows == plain
    by_text = llmkit.predict(rows=iter(texts), model=model, predict=fast, quiet=True)
    assert by_text["predictions"] == plain
    output = tmp_path / "labels.jsonl"
    in_file = llmkit.predict(csv=reviews, model=model, output=output, predict=fast, quiet=True)
    assert "predictions" not in in_file
    assert list(map(json.loads, output.read_text().splitlines())) == printed


class Frame:
    """A table that gives its rows as pandas does."""

    columns = ("text", "stars")

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return [{"text": "fine dog", "stars": 5.0}, {"text": "awful\nmat", "stars": float("nan")}]


def test_a_data_frame_is_rows(classifier: dict[str, Any]) -> None:
    found = llmkit.predict(rows=Frame(), model=classifier["run_dir"], quiet=True)["predictions"]
    assert [each["text"] for each in found] == ["fine dog", "awful\nmat"]
    assert [each["columns"] for each in found] == [{"stars": 5.0}, {"stars": None}]
    with pytest.raises(errors.UsageError, match="names files") as fault:
        llmkit.finetune(csv=Frame())
    assert "to_csv" in fault.value.next


class Polars(Frame):
    """A table that gives its rows in another way."""

    def to_dict(self, *, as_series: bool = True) -> dict[str, Any]:
        return {}


class Series(list[str]):
    """A column of a table: it can be iterated over, and gives no rows."""

    def to_dict(self) -> dict[int, str]:
        return dict(enumerate(self))


def test_a_column_of_a_data_frame_is_texts(classifier: dict[str, Any]) -> None:
    column = Series(["fine dog", "awful mat"])
    found = llmkit.predict(rows=column, model=classifier["run_dir"], quiet=True)["predictions"]
    assert [each["text"] for each in found] == list(column)


def test_text_that_has_no_encoding_is_refused(called: dict[str, Any]) -> None:
    with pytest.raises(errors.DataError, match="not UTF-8"):
        llmkit.generate(model=called["run_dir"], prompt="a\ud800")


def test_rows_are_read_rather_than_the_files_of_a_config(
    classifier: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "predict.yaml"
    config.write_text("data: {test_files: nowhere.csv}\n")
    model = classifier["run_dir"]
    assert len(llmkit.predict(config, rows="one", model=model, quiet=True)["predictions"]) == 1
    assert llmkit.predict(rows=[], model=model, quiet=True)["predictions"] == []
    with pytest.raises(errors.ConfigError, match="invalid config") as fault:
        llmkit.predict(rows=["one"], csv="rows.csv", model=model)
    assert "is given twice (argument csv)" in fault.value.where
    with pytest.raises(errors.DataError) as bad:
        llmkit.predict(rows=[{"text": "a"}, {"txt": "b"}], model=model)
    assert "rows:2" in bad.value.where


def test_a_dry_run_returns_what_the_command_finds(
    corpus: Path, tmp_path: Path, command: Command
) -> None:
    place = tmp_path / "run"
    found = llmkit.pretrain(text=corpus, output_dir=place, dry_run=True, quiet=True)
    printed = command("pretrain", "--text", corpus, "--output-dir", place, "--dry-run")[0]
    measured = ("seconds", "memory_bytes")  # differ between two processes
    for report in (found, printed):
        assert all(report["expected"].pop(name) > 0 for name in measured)
    assert found == printed
    assert not place.exists()


@pytest.mark.parametrize(
    ("keys", "kind", "said"),
    [
        ({"lr": 3e-4}, "bad-config", 'no such key; write `train={"learning_rate": 0.0003}`'),
        ({"train": {"max_step": 5}}, "bad-config", 'did you mean `train={"max_steps": 5}`?'),
        ({"train": {"max_steps": "5"}}, "bad-config", 'write `train={"max_steps": 5}`'),
        ({"train": {"optimizer": "adam"}}, "bad-config", 'write `train={"optimizer": "adamw"}`'),
        ({"train": 5}, "bad-config", "is a section"),
        ({"output_file": "x"}, "bad-config", "no such key"),
        ({"data": {"train_files": "b"}}, "bad-config", "is given twice (argument text)"),
        ({"model": ""}, "bad-config", "argument model: model.name_or_path: is empty"),
        ({"predict": {"format": "csv"}}, "bad-config", "is a key of predict, not of pretrain"),
        ({"model": {"code": "mine.py"}}, "unsafe", "model.code"),
        ({"model": "./nowhere"}, "not-found", "nowhere"),
        ({"text": "nowhere.txt"}, "not-found", "nowhere.txt does not exist"),
    ],
)  # fmt: skip
def test_a_fault_is_an_error_with_its_parts(
    keys: dict[str, Any], kind: str, said: str, corpus: Path
) -> None:
    with pytest.raises(errors.LlmkitError) as caught:
        llmkit.pretrain(**{"text": corpus, **keys})
    fault = caught.value
    assert fault.name == kind
    assert said in str(fault)
    assert said in f"{fault.what} {fault.where} {fault.next}"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: llmkit.pretrain("corpus.txt"), "corpus.txt is data, not a config"),
        (lambda: llmkit.pretrain("nowhere.yaml"), "the config file does not exist"),
        (lambda: llmkit.pretrain(), "data.train_files is not given"),
        (lambda: llmkit.generate(model=Path(__file__).parent), "config.json"),
        (lambda: llmkit.predict(rows=[3], model="m"), "a row should be text or a mapping; got int"),
        (lambda: llmkit.predict(rows=5, model="m"), "mappings or a data frame of pandas; got int"),
        (lambda: llmkit.predict(rows=Polars(), model="m"), "`to_dicts()` (polars)"),
        (lambda: llmkit.evaluate(model=5), 'as in `model="runs/mine"`'),
        (lambda: llmkit.evaluate(model=[]), "got an empty list"),
        (lambda: llmkit.pretrain({"seed": 1}), "`pretrain(**keys)`"),
        (lambda: llmkit.pretrain(["a.yaml"]), "CONFIG should be the path of a YAML file; got list"),
        (lambda: llmkit.finetune(data={"train_files": Frame()}), "`data` names files"),
        (lambda: llmkit.pretrain(Path(__file__).parent), 'pass data with `data={"train_files": '),
        (lambda: llmkit.generate("one two"), '`generation={"prompts": "one two"}`'),
    ],
)
def test_a_call_that_lacks_something_is_refused(call: Any, said: str) -> None:
    """Never does it wait for stdin."""
    with pytest.raises(errors.LlmkitError) as caught:
        call()
    assert said in str(caught.value)


def test_messages_appear_as_in_a_terminal_unless_it_is_quiet(
    called: dict[str, Any], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llmkit.pretrain(text=corpus, output_dir=tmp_path / "run", **KEYS)
    loud = capsys.readouterr()
    assert "step 4/4" in loud.err
    assert loud.out == ""
    assert metrics(tmp_path / "run") == metrics(Path(called["run_dir"]))
    short = {"max_new_tokens": 2}
    llmkit.generate(model=called["run_dir"], prompt="the", generation=short, quiet=True)
    assert capsys.readouterr() == ("", "")
