"""`llmkit init`: a config for the user's own files, that the command takes as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.cli.app import run_command


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my reviews.csv"
    lines = [f"{n},review number {n},{'good' if n % 2 else 'bad'}" for n in range(40)]
    path.write_text("\n".join(["id,review,stars", *lines]) + "\n")
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_columns_of_a_table_are_filled_in(capsys, rows: Path) -> None:
    rows.write_text(rows.read_text().replace("id,review,stars", "id,text,label"))
    code, out, _ = told(capsys, "init", "classifier", "--csv", rows.name, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["filled"]["data.text_column"] == "text"
    assert found["filled"]["data.label_column"] == "label"
    code, out, err = told(capsys, "finetune", found["config"], "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["rows"] == 40


def test_columns_that_are_not_clear_are_left_to_the_user(capsys, rows: Path) -> None:
    rows.write_text("a,b,c\n" + "one text,another text,a third text\n" * 9)
    code, out, _ = told(capsys, "init", "classifier", "--csv", rows.name, "--json")
    assert code == 0
    assert "columns" in json.loads(out)["notes"][0]
    assert "my reviews.csv" in Path("classifier.yaml").read_text()


def test_an_existing_file_is_never_replaced(capsys, rows: Path) -> None:
    Path("pretrain.yaml").write_text("mine")
    assert told(capsys, "init", "pretrain")[0] == 73
    assert Path("pretrain.yaml").read_text() == "mine"
    assert told(capsys, "init", "pretrain", "-o", "other.yaml")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "pass one of pretrain"),
        (("clasifier",), 2, "llmkit init classifier"),
        (("pretrain", "--text", "nowhere.txt"), 66, "nowhere.txt"),
        (("generate", "--text", "my reviews.csv"), 2, "takes no files"),
    ],
)
def test_what_does_not_fit_is_refused(capsys, rows: Path, arguments, code, said) -> None:
    found, _, err = told(capsys, "init", *arguments)
    assert (found, said in err) == (code, True), err
    assert not list(Path().glob("*.yaml"))
