"""Predictions as JSON lines and CSV, and the files that hold them."""

from __future__ import annotations

import csv
import datetime
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from llmkit.config.schema import PredictConfig
from llmkit.errors import RunBusy, WriteError
from llmkit.reporting import predictions
from llmkit.reporting.predictions import Prediction
from llmkit.storage import resumable

SPAM = Prediction(("Win, now\n",), "spam", {"ham": 0.25, "spam": 0.75}, {"id": "7", "label": "x"})
PAIR = Prediction(("a", "b"), ["x"], {"x": 0.5, "y": 0.1})


def write(settings: PredictConfig, *some: Prediction) -> None:
    with predictions.open_predictions(settings, {"model": "a"}, print) as writer:
        writer.write(some)


def test_json_lines_hold_text_label_and_probabilities(tmp_path) -> None:
    path = tmp_path / "deep" / "out.jsonl"
    settings = PredictConfig(output=str(path))
    predictions.check_predictions_file(settings)
    write(settings, SPAM, PAIR)
    one, other = map(json.loads, path.read_text().splitlines())
    assert one == {
        "text": "Win, now\n", "label": "spam", "probabilities": {"ham": 0.25, "spam": 0.75},
        "columns": {"id": "7", "label": "x"},
    }  # fmt: skip
    assert other["text"] == ["a", "b"]
    assert other["label"] == ["x"]


def test_csv_reads_back_and_no_column_of_the_input_hides_one_of_the_output(tmp_path) -> None:
    path = tmp_path / "out.csv"
    write(PredictConfig(output=str(path)), SPAM, SPAM)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == 2 * [
        {"id": "7", "input_label": "x", "text": "Win, now\n", "label": "spam",
         "probability_ham": "0.25", "probability_spam": "0.75"}
    ]  # fmt: skip


def test_predictions_may_be_written_again_and_nothing_else_is_overwritten(tmp_path) -> None:
    for name in ("out.csv", "out.jsonl"):
        settings = PredictConfig(output=str(tmp_path / name))
        write(settings, SPAM)
        predictions.check_predictions_file(settings)
    precious = tmp_path / "train.csv"
    for text in ("text,label\na,b\n", "day,probability_rain\n1,0.5\n", '{"probabilities": {}}\n'):
        precious.write_text(text)
        with pytest.raises(WriteError, match="does not hold predictions"):
            predictions.check_predictions_file(PredictConfig(output=str(precious)))
    with pytest.raises(WriteError):
        predictions.check_predictions_file(PredictConfig(output=str(tmp_path)))


def test_predicted_numbers_are_known_as_ours_and_labelled_rows_are_not(tmp_path) -> None:
    given = {"problem_type": "hard", "text": "a"}
    number = Prediction(("a",), 612.25, {}, cells=given)
    for name in ("out.csv", "out.jsonl"):
        settings = PredictConfig(output=str(tmp_path / name))
        for _ in range(2):
            predictions.check_predictions_file(settings)
            write(settings, number)
    with (tmp_path / "out.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"input_problem_type": "hard", "text": "a", "label": "612.25",
             "problem_type": "regression"}
        ]  # fmt: skip
    precious = tmp_path / "train.csv"
    long = "word " * 40_000  # more than csv reads as one value
    for text in (
        "text,label\na,1.5\n",
        "text,label,problem_type,by\na,1,b,c\n",
        f"a,label,{long}\n",
    ):
        precious.write_text(text)
        with pytest.raises(WriteError, match="does not hold predictions"):
            predictions.check_predictions_file(PredictConfig(output=str(precious)))


def test_a_label_with_a_comma_leaves_the_file_known_as_ours(tmp_path) -> None:
    settings = PredictConfig(output=str(tmp_path / "out.csv"))
    write(settings, Prediction(("a",), "x, y", {"x, y": 0.75, "z": 0.25}))
    predictions.check_predictions_file(settings)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_full_disk_leaves_the_old_file_and_what_the_next_job_resumes(
    tmp_path, suffix, capsys
) -> None:
    path = tmp_path / f"out.{suffix}"
    settings = PredictConfig(output=str(path))
    write(settings, SPAM)
    before = path.read_bytes()
    many = [SPAM] * 50

    def on_a_full_disk() -> None:
        with predictions.open_predictions(settings, {"model": "a"}, print) as writer:
            writer.write(many)
            with files_of_at_most(len(many) * 60):
                writer.write(many)

    with pytest.raises(WriteError, match="File too large"):
        on_a_full_disk()
    assert path.read_bytes() == before
    with predictions.open_predictions(settings, {"model": "a"}, print) as writer:
        assert writer.rows == 50
        writer.write(many)
    assert "resuming after 50 results" in capsys.readouterr().out
    resumed = path.read_bytes()
    write(settings, *many, *many)
    assert path.read_bytes() == resumed
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def broken_off(path, made_with, *some: Prediction) -> None:
    with predictions.open_predictions(PredictConfig(output=str(path)), made_with, print) as writer:
        writer.write(some)
        raise KeyboardInterrupt


def test_what_was_made_with_something_else_is_made_again(tmp_path, capsys) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        broken_off(path, {"model": "b"}, PAIR, PAIR)
    write(PredictConfig(output=str(path)), SPAM)
    assert "starting over" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) == 1


def test_of_a_pipe_that_broke_off_nothing_is_left(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        broken_off(tmp_path / "out.jsonl", {}, PAIR, PAIR)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("note", ["", "{", "[]", '{"made_with": {"model": "a"}, "bytes": 1000000}'])
def test_a_damaged_note_is_not_a_note(tmp_path, note) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        broken_off(path, {"model": "a"}, PAIR, PAIR)
    resumable.note_of(path).write_text(note)
    write(PredictConfig(output=str(path)), SPAM)
    assert len(path.read_text().splitlines()) == 1


def test_two_jobs_do_not_write_the_same_predictions(tmp_path) -> None:
    settings = PredictConfig(output=str(tmp_path / "out.jsonl"))
    with predictions.open_predictions(settings, {"model": "a"}, print) as writer:
        with pytest.raises(RunBusy):
            write(settings, PAIR)
        writer.write([SPAM])
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1


def test_the_format_goes_by_the_name_unless_it_is_given() -> None:
    assert predictions.output_format(PredictConfig(output="a.csv")) == "csv"
    assert predictions.output_format(PredictConfig(output="a.txt")) == "jsonl"
    assert predictions.output_format(PredictConfig(output="a.csv", format="jsonl")) == "jsonl"
    assert predictions.output_format(PredictConfig()) == "jsonl"


def test_rows_of_a_csv_have_the_columns_of_the_first(tmp_path) -> None:
    path = tmp_path / "out.csv"
    with_id = Prediction(("a",), "x", {"x": 1.0}, {"id": "1"})
    without = Prediction(("b",), "x", {"x": 1.0})
    write(PredictConfig(output=str(path)), with_id, without)
    assert path.read_text().splitlines() == ["id,text,label,probability_x", "1,a,x,1.0", ",b,x,1.0"]
    with predictions.open_predictions(PredictConfig(output=str(path)), {}, print) as writer:
        writer.write([without, with_id])
    assert path.read_text().splitlines() == ["text,label,probability_x", "b,x,1.0", "a,x,1.0"]
    assert writer.dropped_columns == {"id": 1}


def test_a_resumed_job_counts_the_labels_of_all_predictions(tmp_path) -> None:
    for name in ("out.csv", "out.jsonl"):
        settings = PredictConfig(output=str(tmp_path / name))
        for number in range(3):
            with (
                suppress(KeyboardInterrupt),
                predictions.open_predictions(settings, {"a": 1}, print) as out,
            ):
                out.write([SPAM, Prediction(("?",), "ham", {"ham": 0.55, "spam": 0.45})])
                if number < 2:
                    raise KeyboardInterrupt
        assert out.summary() == {"labels": {"spam": 3, "ham": 3}, "below_0.6": 3}


def test_values_that_json_does_not_have_are_written_as_text(tmp_path) -> None:
    odd = {"when": datetime.date(2024, 5, 1), "gone": float("nan"), "raw": [b"x"]}
    write(PredictConfig(output=str(tmp_path / "a.jsonl")), replace(SPAM, columns=odd))
    assert json.loads((tmp_path / "a.jsonl").read_text())["columns"] == {
        "when": "2024-05-01", "gone": None, "raw": ["b'x'"]
    }  # fmt: skip


def test_a_column_that_is_renamed_takes_the_place_of_no_other() -> None:
    columns = {"label": "a", "input_label": "b", "text": "c", "probability_ham": "d"}
    row = Prediction(("c",), "ham", {"ham": 1.0}, cells=columns).as_cells()
    assert row == {
        "input_input_label": "a", "input_label": "b", "text": "c", "input_probability_ham": "d",
        "label": "ham", "probability_ham": 1.0,
    }  # fmt: skip


NUMBERS = [Prediction(("a",), 1.5, {}), Prediction(("b",), -2.0, {})]
SEVERAL = [
    Prediction(("a",), ["ham", "spam"], {"ham": 0.8, "spam": 0.6}),
    Prediction(("b",), [], {"ham": 0.1, "spam": 0.2}),
]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (NUMBERS, "mean -0.25, from -2 to 1.5"),
        (SEVERAL, "ham 1, spam 1; 1 row without a label"),
        ([SPAM, SPAM], "spam 2"),
    ],
)
def test_counts_cover_every_kind_of_label_also_when_resumed(
    tmp_path, name: str, rows, sentence: str
) -> None:
    settings = PredictConfig(output=str(tmp_path / name))
    for number, row in enumerate(rows):
        with (
            suppress(KeyboardInterrupt),
            predictions.open_predictions(settings, {"a": 1}, print) as out,
        ):
            out.write([row])
            if number == 0:
                raise KeyboardInterrupt
    assert predictions.counts_sentence(out.summary()) == sentence


def test_a_sentence_of_counts_stays_short() -> None:
    labels = {f"label{n}": 100 - n for n in range(77)}
    found = predictions.counts_sentence({"labels": labels, "below_0.6": 1400})
    assert found.startswith("label0 100, label1 99, ")
    assert found.endswith("label19 81, 57 other labels; 1,400 rows below 0.6")
    assert predictions.counts_sentence({"labels": {}, "below_0.6": 0}) == ""


TEXTS = ["a\rb", "a\r\nb", '"', "a,b", "", "\u2028", "x" * 200_000, " ", "\u05e9\u05dc", "\0"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_any_text_reads_back_and_is_counted_again_when_a_job_is_resumed(tmp_path, suffix) -> None:
    path = tmp_path / f"out.{suffix}"
    some = [
        Prediction((text,), "[x", {"[x": 0.75, "y": 0.25}, {"probability_rain": "soon"})
        for text in TEXTS
    ]
    with suppress(KeyboardInterrupt):
        broken_off(path, {"model": "a"}, *some)
    settings = PredictConfig(output=str(path))
    with predictions.open_predictions(settings, {"model": "a"}, print) as writer:
        assert writer.summary() == {"labels": {"[x": len(TEXTS)}, "below_0.6": 0}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file) if suffix == "csv" else map(json.loads, file)
        assert [row["text"] for row in rows] == TEXTS


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("chances", [{}, {"x": None, "y": None}])
def test_a_row_with_outputs_that_are_not_finite_has_no_label_and_is_counted(
    tmp_path, suffix, chances
) -> None:
    path = tmp_path / f"out.{suffix}"
    good = Prediction(("a",), "x", {"x": 0.75, "y": 0.25}) if chances else NUMBERS[0]
    with suppress(KeyboardInterrupt):
        broken_off(path, {"model": "a"}, good, Prediction(("b",), None, chances))
    settings = PredictConfig(output=str(path))
    with predictions.open_predictions(settings, {"model": "a"}, print) as writer:
        found = writer.summary()
    assert found["non_finite"] == 1
    assert found.get("labels", {"x": 1}) == {"x": 1}
    sentence = predictions.counts_sentence(found)
    assert sentence.endswith("; 1 row with outputs that are NaN or infinite")
    assert "nan" not in path.read_text().lower()
