"""`llmkit clean`: the story from a dirty folder to a page on the model that was trained on it."""

from __future__ import annotations

import json
import random
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli import app
from llmkit.data.cleaning.passes.rows_file import reading_rows
from llmkit.errors import InputNotFound, UsageError, WriteError
from llmkit.storage.outputs import CLEANED, TRACE
from tests.dirty import SENTENCES, mojibake, prose, with_other_words
from tests.jobs import CONFIGS, tiny, write_table

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def dirty(tmp_path: Path) -> Path:
    """A folder of texts, half of them copies."""
    (folder := tmp_path / "dirty").mkdir()
    chance, texts = random.Random(0), prose(24, words=60)
    texts += [with_other_words(text, 0.03, chance) for text in texts]
    for number, text in enumerate([*texts, mojibake(SENTENCES["de"]), ""]):
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return folder


def rows_in(directory: Path) -> list[dict[str, Any]]:
    """The rows of a cleaned text."""
    return [row for path in sorted((directory / "text").iterdir()) for row in reading_rows(path)]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_dirty_folder_becomes_a_model_and_two_pages(
    call: Call, dirty: Path, tmp_path: Path
) -> None:
    out, run = tmp_path / "cleaned", tmp_path / "run"
    expected = call("clean", CONFIGS / "clean.yaml", "--text", dirty, "--output", out, "--dry-run")
    assert (expected["code"], out.exists()) == (0, False)
    assert expected["sample"]["documents"] <= 50 <= expected["whole"]["documents"] + 3
    found = call("clean", CONFIGS / "clean.yaml", "--text", dirty, "--output", out)
    assert found["code"] == 0, found["said"]
    assert found["before"]["documents"] == 50
    assert found["after"]["documents"] == 25
    assert found["removed"]["near_duplicate"]["documents"] == 24
    assert found["edits"] == {
        "mojibake": {"documents": 1, "bytes_added": found["edits"]["mojibake"]["bytes_added"]}
    }
    assert "near_duplicate removed 5" in found["warnings"][0]
    page = call("report", out)["page"]
    assert "25 documents of 50 are kept" in Path(page).read_text(encoding="utf-8")
    trained = call("pretrain", "--text", out, "-o", run, "train.max_steps=2", *tiny())
    assert trained["code"] == 0, trained["said"]
    data = json.loads((run / "run.json").read_text())["data"]
    counted = data["text"][""]
    assert counted["train"]["documents"] + counted["validation"]["documents"] >= 25


def test_the_same_command_again_does_nothing(call: Call, dirty: Path, tmp_path: Path) -> None:
    line = ("clean", "--text", dirty, "--output", tmp_path / "out")
    first = call(*line)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    second = call(*line)
    assert {**second, "seconds": 0, "said": ""} == {**first, "seconds": 0, "said": ""}
    assert "nothing is left to do" in second["said"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_workers_of_several_commands_share_the_work(
    call: Call, dirty: Path, tmp_path: Path
) -> None:
    line = ("clean", "--text", dirty, "--workers", 1, "--output")
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert call(*line, alone)["code"] == 0
    for worker in (1, 0):  # the second finds that all is done
        found = call(*line, shared, "--worker", worker, "--of", 2)
        assert found["code"] == 0, found["said"]
    for name in (CLEANED, TRACE, "text/00000.jsonl.zst"):
        assert (alone / name).read_bytes() == (shared / name).read_bytes()


def test_a_cleaning_beside_its_text_is_not_cleaned_again(
    call: Call, dirty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = call("clean", "--text", "dirty", "--output", "dirty/cleaned")
    for text in ("dirty", "dirty/**"):
        again = call("clean", "--text", text, "--output", "dirty/cleaned")
        assert (again["code"], again["before"]) == (0, first["before"]), again["said"]
        checked = call("pretrain", "--text", text, "--dry-run")
        assert checked["data"]["train_files"]["documents"] == 49
    assert call("clean", "--text", "dirty/cleaned", "--output", "twice")["removed"] == {}


def test_pages_of_a_directory_are_read_where_their_text_is_asked_for(
    call: Call, tmp_path: Path
) -> None:
    (folder := tmp_path / "site").mkdir()
    text = prose(1, words=80)[0]
    page = f"<!doctype html><html><body><article><p>{text}</p></article></body></html>"
    (folder / "a.html").write_text(page)
    line = ("clean", "--text", folder, "--output", tmp_path / "out")
    assert "clean.html=true" in call(*line)["error"]["next"]
    (folder / "b.txt").write_text(prose(2, words=80)[1])
    assert "clean.html=true" in call(*line, "--dry-run")["said"]
    found = call(*line, "clean.html=true")
    assert found["before"]["documents"] == 2
    assert text in [row["text"].strip() for row in rows_in(tmp_path / "out")]


def test_a_language_that_no_text_can_be_in_is_refused(
    call: Call, dirty: Path, tmp_path: Path
) -> None:
    line = ("clean", "--text", dirty, "--output", tmp_path / "out")
    refused = call(*line, "clean.languages=[en,english]")
    assert (refused["code"], refused["error"]["where"]) == (78, "clean.languages")
    assert "english" in refused["error"]["what"]
    assert not (tmp_path / "out").exists()


def test_another_text_is_not_written_over_the_first(
    call: Call, dirty: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert call("clean", "--text", dirty, "--output", out)["code"] == 0
    refused = call("clean", "--text", dirty, "--output", out, "clean.pii=mask")
    assert refused["code"] == 78
    assert "other settings" in refused["error"]["what"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refused = call("clean", "--text", dirty, "--output", tmp_path / "mine")
    assert refused["code"] == WriteError.exit_code
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("content", ["", "[]", '{"identity": ', "[" * 100_000])
def test_a_damaged_report_is_named(content: str, call: Call, dirty: Path, tmp_path: Path) -> None:
    (out := tmp_path / "cleaned").mkdir()
    (out / CLEANED).write_text(content)
    for line in (("clean", "--text", dirty, "--output", out), ("report", out)):
        found = call(*line)
        assert found["code"] == 65, found["said"]
        assert "cannot read the report" in found["said"]
        assert (out / CLEANED).read_text() == content


def test_a_document_is_explained_stage_by_stage(call: Call, dirty: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("clean", "--text", dirty, "--output", out)
    found = call("clean", "--text", dirty, "--output", out, "--explain", "30.txt#1")
    *others, last = found["stages"]
    assert [each["verdict"] for each in others] == ["kept"] * len(others)
    assert (last["stage"], last["limit"]) == ("near_duplicate", 0.6)
    assert last["verdict"] == f"removed: like {dirty / '06.txt'}#1"
    other = call(
        "clean", "--text", dirty, "--output", out, "--explain", "30.txt#1", "clean.pii=mask"
    )
    assert "other settings" in other["error"]["what"]


def test_rows_keep_their_columns_and_lose_what_is_like_the_test_rows(
    call: Call, tmp_path: Path
) -> None:
    texts, chance = prose(12, words=30), random.Random(1)
    rows = [(text, "ab"[number % 2]) for number, text in enumerate(texts)]
    train = write_table(tmp_path / "train.csv", [*rows[:10], rows[2]])
    near = with_other_words(texts[5], 0.03, chance)
    test = write_table(tmp_path / "test.csv", [(near, "b"), (texts[11], "a"), (texts[11], "a")])
    out = tmp_path / "out"
    found = call("clean", "--csv", train, f"data.test_files={test}", "--output", out)
    assert found["code"] == 0, found["said"]
    assert found["after"]["documents"] == 9
    account = json.loads((out / CLEANED).read_text())
    [held_out] = [each for each in account["sources"] if each["held_out"]]
    assert (held_out["copies_within"], held_out["copies_in_training"]) == (1, 1)
    checked = call("finetune", "--csv", out, "--dry-run")
    assert checked["code"] == 0, checked
    assert {row["label"] for row in rows_in(out)} == {"a", "b"}


def test_words_are_taken_out_with_a_warning_about_language_models(
    call: Call, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("The Cat sat on THE mat")
    line = ("clean.stop_words=english", "clean.lowercase=true")
    found = call("clean", "--text", tmp_path / "a.txt", "--output", tmp_path / "out", *line)
    assert "3.35 against 2.30 bits per byte" in found["warnings"][0]


def test_labelled_rows_lose_case_and_stop_words_and_keep_their_labels(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("The Plot is GREAT", "good"), ("It was a Bore", "bad"), ("the plot IS great", "good")]
    table = write_table(tmp_path / "reviews.csv", [*rows, ("Is it the", "bad")])
    line = ("clean", "--csv", table, "--output", tmp_path / "out")
    found = call(*line, "clean.stop_words=english", "clean.lowercase=true")
    assert [(row["text"], row["label"]) for row in rows_in(tmp_path / "out")] == [
        ("plot great", "good"),
        ("bore", "bad"),
    ]
    assert {name: each["documents"] for name, each in found["removed"].items()} == {
        "empty": 1, "exact": 1
    }  # fmt: skip
    assert found["edits"].keys() == {"lowercase", "stop_words"}
    assert app.run_command(["keys", "stop_words"]) == 0
    assert "3.35 against 2.30 bits per byte" in " ".join(capsys.readouterr().out.split())


def test_without_its_packages_the_command_that_installs_them_is_named(
    call: Call, dirty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("clean", "--text", dirty, "--output", tmp_path / "out")
    for package, keys in (("rensa", ()), ("trafilatura", ("clean.html=true",))):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            refused = call(*line, *keys)
        assert refused["code"] == 78
        assert package in refused["error"]["what"]
        assert f"{package}>=" in refused["error"]["next"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((), UsageError), (("--output", "x"), InputNotFound), (("--text", "no.txt"), InputNotFound)],
)
def test_what_is_missing_is_named(arguments: tuple[str, ...], error: type, call: Call) -> None:
    refused = call("clean", *arguments)
    assert refused["code"] == error.exit_code
    assert refused["error"]["next"]


def test_the_trace_of_a_cleaning_is_not_data(call: Call, dirty: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("clean", "--text", dirty, "--output", out)
    checked = call("pretrain", "--text", out, "--dry-run")
    files = [Path(each["path"]) for each in checked["data"]["train_files"]["files"]]
    assert {path.parent.name for path in files} == {"text"}
    assert (out / TRACE).stat().st_size


def test_help_and_the_words_of_other_tools_lead_to_the_command() -> None:
    with pytest.raises(UsageError) as raised:
        app.app(["dedup"], standalone_mode=False, obj=["dedup"])
    assert "llmkit clean" in raised.value.next
