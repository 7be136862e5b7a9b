import contextlib
import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.config.schema import Config
from llmkit.data.readers import roles
from llmkit.data.readers.files import Sources
from llmkit.data.records import dataset
from llmkit.data.records.dataset import Labelled
from llmkit.data.records.labels import MULTI, REGRESSION, SINGLE, Labels
from llmkit.errors import ConfigError, DataError, InputNotFound
from llmkit.progress import Watch

Rows = list[tuple[str, str]]

PLAIN: Rows = [(f"{label} text {number}", label) for label in "ab" for number in range(10)]


class Files:
    """Writes small tables and loads them."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self.folder, self.watch = folder, watch
        self.said: list[str] = []
        self.warned: list[str] = []

    def write(self, name: str, rows: Rows) -> str:
        path = self.folder / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
        return str(path)

    def load(self, train: Rows, seed: int = 0, **keys: Any) -> Labelled:
        """Loads rows; those of validation_files and test_files are written first."""
        files = {
            key: self.write(key.removesuffix("_files"), rows) if isinstance(rows, list) else rows
            for key, rows in {"train_files": train, **keys}.items()
            if key.endswith("_files")
        }
        config = Config.model_validate({"seed": seed, "data": {**keys, **files}})
        return dataset.load_labelled(
            config, Sources(config), self.watch, self.said.append, self.warned.append
        )

    def fault(self, train: Rows, **keys: Any) -> DataError:
        with pytest.raises(DataError) as fault:
            self.load(train, **keys)
        assert fault.value.where
        assert fault.value.next
        return fault.value


@pytest.fixture
def files(tmp_path: Path, watch: Watch) -> Files:
    return Files(tmp_path, watch)


def rows_of(finding: dict[str, Any]) -> list[int]:
    return [row["row"] for row in finding["rows"]]


def test_a_tenth_of_each_class_is_held_out(files: Files) -> None:
    rows = [(f"{label}{n}", label) for label, size in [("x", 300), ("y", 50)] for n in range(size)]
    found = files.load(rows)
    assert found.report["rows"] == 350
    assert found.report["classes"] == {"x": 300, "y": 50}
    assert found.report["splits"] == {
        "train": {"rows": 315, "classes": {"x": 270, "y": 45}},
        "validation": {"rows": 35, "classes": {"x": 30, "y": 5}},
    }
    assert found.validation
    both = Counter(found.train.places) + Counter(found.validation.places)
    assert sorted(both) == [(str(files.folder / "train.csv"), n) for n in range(1, 351)]
    assert set(both.values()) == {1}


def test_a_split_comes_again_with_the_same_content_and_seed(files: Files) -> None:
    def held(**keys: Any) -> set[tuple[str, ...]]:
        validation = files.load(PLAIN, **keys).validation
        assert validation
        return set(validation.texts)

    assert held() == held()
    assert len({frozenset(held(seed=seed)) for seed in range(6)}) > 3
    assert files.load(PLAIN, validation_fraction=0).validation is None


def test_every_row_keeps_its_label(files: Files) -> None:
    found = files.load(PLAIN, test_files=PLAIN[:3])
    for table in (found.train, found.validation, found.test):
        assert table
        for (text,), number in zip(table.texts, table.targets.tolist(), strict=True):
            assert found.labels.names[number] == text[0]


def test_the_report_names_every_odd_row_counted_from_one(files: Files) -> None:
    train = [*PLAIN, ("a text 0", "a"), (" a text 1 ", "a"), ("b text 0", "a"), ("  ", "a")]
    train += [("c", ""), ("d\nd", "b")]
    test = [("b text 9", "b"), ("new", "b"), ("b text 8 ", "a"), ("new", "b"), ("a", "a")]
    found = files.load(train, test_files=test)
    report = found.report
    assert json.loads(json.dumps(report)) == report
    assert report["rows"] == 26
    assert report["problem_type"] == SINGLE
    assert report["columns"] == {"text": "text", "label": "label"}
    assert report["classes"] == {"a": 13, "b": 11}
    assert report["blank"]["count"] == 2
    assert [(row["row"], row["blank"]) for row in report["blank"]["rows"]] == [
        (24, "text"),
        (25, "label"),
    ]
    duplicates = report["duplicates"]
    assert (duplicates["count"], duplicates["count_stripped"]) == (3, 4)
    assert [(row["split"], row["row"], row["repeats"]["row"]) for row in duplicates["rows"]] == [
        ("train", 21, 1),
        ("train", 22, 2),
        ("train", 23, 11),
        ("test", 4, 2),
    ]
    assert [(row["row"], row["repeats"]["row"]) for row in report["overlap"]["rows"]] == [
        (1, 20),
        (3, 19),
    ]
    assert (report["overlap"]["count"], report["overlap"]["count_stripped"]) == (1, 2)
    assert [
        {label: [place["row"] for place in places] for label, places in row["labels"].items()}
        for row in report["conflicts"]["rows"]
    ] == [{"b": [11], "a": [23]}, {"b": [19], "a": [3]}]
    assert all("train.csv" in row["file"] for row in report["blank"]["rows"])
    for words in ("2 rows of data.train_files blank", "rows 24, 25", "different labels"):
        assert any(words in warning for warning in files.warned), words
    assert report["warnings"] == files.warned


def test_skipped_rows_are_in_no_split(files: Files) -> None:
    found = files.load([*PLAIN, ("", "a"), ("x", " ")])
    assert found.validation
    assert len(found.train) + len(found.validation) == 20


def test_long_findings_are_cut_and_counted(files: Files) -> None:
    duplicates = files.load([*PLAIN, *PLAIN, *PLAIN]).report["duplicates"]
    assert duplicates["count"] == 40
    assert len(duplicates["rows"]) == 20


def test_labels_of_only_one_split_are_reported(files: Files) -> None:
    found = files.load(PLAIN, test_files=[("new", "a")])
    [row] = found.report["unseen_labels"]["rows"]
    assert (row["label"], row["split"], row["row"]) == ("b", "train", 11)
    assert any("1 label without a row in data.test_files: 'b'" in each for each in files.warned)


def test_a_label_only_in_the_test_file_stops_unless_allowed(files: Files) -> None:
    test = [("x", "a"), ("y", "c"), ("z", "c")]
    fault = files.fault(PLAIN, test_files=test)
    assert (
        "2 rows of data.test_files with labels that data.train_files does not have: 'c'"
        in fault.what
    )
    assert fault.where == f"{files.folder / 'test.csv'} rows 2, 3"
    assert "data.allow=[unseen_labels]" in fault.next
    found = files.load(PLAIN, test_files=test, allow=["unseen_labels"])
    assert found.test
    assert found.test.texts == [("x",)]
    assert any("skipped" in warning and "rows 2, 3" in warning for warning in files.warned)


def test_a_class_with_one_text_stops_a_split_unless_allowed(files: Files) -> None:
    train = [*PLAIN, ("once", "c"), ("once ", "c"), ("solo", "d")]
    fault = files.fault(train)
    assert "2 labels with one text only, which cannot be split: 'c', 'd'" in fault.what
    assert "rows 21, 23" in fault.where
    found = files.load(train, allow="one_row_classes")
    assert found.report["splits"]["train"]["classes"]["c"] == 2
    assert found.report["splits"]["validation"]["classes"]["d"] == 0
    assert files.load(train, validation_files=PLAIN[:4]).validation
    assert files.load(train, validation_fraction=0).report["classes"]["d"] == 1


def test_rows_of_which_none_can_be_held_out_are_refused(files: Files) -> None:
    train = [("red apple", "a"), ("blue sky", "b"), ("blue sky ", "b")]
    fault = files.fault(train, allow="one_row_classes")
    assert "no row can be held out" in fault.what
    assert "data.validation_fraction=0" in fault.next
    assert files.load(train, validation_fraction=0).validation is None


def test_all_faults_are_reported_at_once(files: Files) -> None:
    fault = files.fault([*PLAIN, ("once", "c")], test_files=[("x", "z")])
    assert "one text" in fault.what
    assert "'z'" in fault.what
    assert "data.allow=[one_row_classes, unseen_labels]" in fault.next


@pytest.mark.parametrize(
    ("train", "part"),
    [
        ([("x", "a"), ("y", "a")], "every row of data.train_files has the label 'a'"),
        ([("", "a"), ("y", "")], "all 2 rows are blank"),
        ([], "no row"),
        ([("", "a")] * 3 + [("x", "a"), ("y", "b")], "3 of 5 rows of data.train_files are blank"),
    ],
)
def test_data_that_teaches_nothing_is_refused(files: Files, train: Rows, part: str) -> None:
    assert part in files.fault(train).what


def test_an_empty_file_is_not_found(files: Files) -> None:
    (files.folder / "empty.csv").touch()
    config = {"data": {"train_files": str(files.folder / "empty.csv")}}
    settings = Config.model_validate(config)
    with pytest.raises(InputNotFound):
        dataset.load_labelled(settings, Sources(settings), files.watch, print, print)
    with pytest.raises(InputNotFound, match="train_files is not given"):
        dataset.load_labelled(Config(), Sources(Config()), files.watch, print, print)


def test_a_label_of_every_row_points_to_a_wrong_column(files: Files) -> None:
    rows = [(f"text {number}", f"label {number}") for number in range(9)]
    assert "is data.label_column right?" in files.fault(rows).what


def test_numbers_with_fractions_are_a_regression(files: Files) -> None:
    rows = [(f"text {number}", str(number / 4)) for number in range(100)]
    found = files.load(rows)
    assert found.report["problem_type"] == REGRESSION
    assert found.report["values"] == {"min": 0.0, "max": 24.75, "mean": 12.375}
    assert found.report["classes"] == {}
    assert found.validation
    assert found.labels.names == ("label",)
    assert len(found.validation) == 10
    assert np.ptp(found.validation.targets) > 15
    fault = files.fault([*rows, ("x", "much")], problem_type="regression")
    assert fault.where.endswith("train.csv row 101")


def test_rows_of_several_labels_are_split_by_their_rarest(files: Files) -> None:
    rows = [(f"text {n}", "a,rare" if n % 20 == 0 else "a") for n in range(200)]
    found = files.load([*rows, ("none", "")], label_separator=",")
    assert found.report["problem_type"] == MULTI
    assert found.report["classes"] == {"a": 200, "rare": 10}
    assert found.report["splits"]["validation"]["classes"] == {"a": 20, "rare": 1}
    assert any("without any label" in warning and "row 201" in warning for warning in files.warned)
    assert found.train.targets.dtype == np.bool_


def test_labels_that_differ_in_their_spelling_are_warned_of(files: Files) -> None:
    files.load([*PLAIN, *[(f"A text {number}", "A") for number in range(3)]])
    assert any("'A', 'a'" in warning for warning in files.warned)


def test_rows_are_read_with_the_labels_that_a_model_knows(files: Files) -> None:
    path = files.write("test", [("x", "b"), ("y", "a"), ("z", "c")])
    config = Config.model_validate({"data": {"test_files": path}})
    found = Sources(config).of("data.test_files")
    known = Labels(SINGLE, ("a", "b"))

    def load(**keys: Any) -> Any:
        data = roles.resolve_label_columns(found, config.data, print)
        changed = data.model_copy(update=keys)
        return dataset.load_known(found, changed, "test", known, files.watch, files.warned.append)

    with pytest.raises(DataError, match="labels that the model does not know: 'c'"):
        load()
    assert load(allow=("unseen_labels",)).targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("keys", "rows", "repeated", "overlap"),
    [
        ({"train_files": "sms_spam/spam_latin1.csv", "encoding": "latin-1"}, 5572, 403, 0),
        ({"train_files": "banking77/train.csv", "test_files": "banking77/test.csv"}, 10003, 0, 0),
        (
            {
                "train_files": "trec/TREC.train.all",
                "test_files": "trec/TREC.test.all",
                "encoding": "latin-1",
            },
            5452,
            71,
            10,
        ),
    ],
)
def test_the_quirks_of_real_sets_are_found(
    shared: Path, watch: Watch, keys: dict[str, str], rows: int, repeated: int, overlap: int
) -> None:
    paths = {
        key: str(shared / "classify" / value) if key.endswith("_files") else value
        for key, value in keys.items()
    }
    config = Config.model_validate({"data": paths})
    found = dataset.load_labelled(
        config, Sources(config), watch, lambda text: None, lambda text: None
    )
    assert found.report["rows"] == rows
    assert found.report["duplicates"]["count"] == repeated
    assert found.report["overlap"]["count"] == overlap
    assert found.validation
    texts = [{text.strip() for (text,) in table.texts} for table in (found.train, found.validation)]
    assert not texts[0] & texts[1]
    share = np.bincount(found.validation.targets) / np.bincount(found.train.targets)
    assert share.min() > 0.06
    assert share.max() < 0.16


def test_goemotions_is_read_with_the_names_of_its_labels(shared: Path, watch: Watch) -> None:
    folder = shared / "classify" / "goemotions"
    data = {
        "train_files": str(folder / "train.tsv"),
        "validation_files": str(folder / "dev.tsv"),
        "test_files": str(folder / "test.tsv"),
        "text_column": 0,
        "label_column": 1,
        "label_separator": ",",
        "label_names": str(folder / "labels.txt"),
    }
    config = Config.model_validate({"data": data})
    found = dataset.load_labelled(
        config, Sources(config), watch, lambda text: None, lambda text: None
    )
    assert found.labels.names[16] == "grief"
    assert found.report["classes"]["grief"] == 77
    assert [found.report["splits"][name]["rows"] for name in ("train", "validation", "test")] == [
        43410,
        5426,
        5427,
    ]
    assert found.train.targets.shape == (43410, 28)


CELLS = st.one_of(
    st.sampled_from(["a", "b", "c", "text", "label", "1", "0", "0.5", "", " ", '"x, y"']),
    st.sampled_from(["{}", '{"text": "a", "label": 1}', "__label__x", '"', '"a""b"', "é,"]),
    st.sampled_from(["\ud800", "\0", "\u2028", "\r", "1e999"]),
)
KEYS: list[dict[str, Any]] = [
    {},
    {"text_column": 0, "label_column": 1},
    {"label_separator": ","},
    {"header": False, "allow": ["one_row_classes", "blank"]},
    {"validation_fraction": 0},
    {"text_column": [0, 0], "label_column": [0, 1]},
    {"format": "label_text"},
    *({"problem_type": kind} for kind in (SINGLE, MULTI, REGRESSION)),
]


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lines=st.lists(st.lists(CELLS, min_size=1, max_size=3), max_size=12),
    between=st.sampled_from(",;\t "),
    suffix=st.sampled_from(["csv", "tsv", "jsonl", "all"]),
    keys=st.sampled_from(KEYS),
)
def test_whatever_stands_in_a_file_is_read_or_refused_in_words(
    tmp_path: Path,
    watch: Watch,
    lines: list[list[str]],
    between: str,
    suffix: str,
    keys: dict[str, Any],
) -> None:
    path = tmp_path / f"a.{suffix}"
    text = "\n".join(between.join(cells) for cells in lines)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    config = Config.model_validate({"data": {"train_files": str(path), **keys}})
    with contextlib.suppress(DataError, InputNotFound, ConfigError):
        found = dataset.load_labelled(
            config, Sources(config), watch, lambda text: None, lambda text: None
        )
        json.dumps(found.report)
        assert len(found.train) + len(found.validation or ()) > 0


def test_a_refusal_carries_the_report_of_the_data(files: Files) -> None:
    """So that `finetune --dry-run --json` prints both."""
    with pytest.raises(DataError) as fault:
        files.load([*PLAIN, ("a text of its own", "c")])
    assert fault.value.found["rows"] == 21
    assert fault.value.found["classes"] == {"a": 10, "b": 10, "c": 1}
    assert fault.value.found["columns"]["label"] == "label"


@pytest.mark.parametrize(
    "content", ["text,label\n", "", " \n\n\t\n", "\ufeff", "\ufefftext,label\n\n"]
)
def test_a_file_without_rows_is_named_alone_and_among_several(
    tmp_path: Path, watch: Watch, content: str
) -> None:
    files = Files(tmp_path, watch)
    nothing = tmp_path / "a_nothing.csv"
    nothing.write_text(content, encoding="utf-8")
    config = Config.model_validate({"data": {"train_files": [str(nothing)]}})
    with pytest.raises((DataError, InputNotFound)) as fault:
        dataset.load_labelled(
            config, Sources(config), watch, files.said.append, files.warned.append
        )
    assert "a_nothing.csv" in fault.value.where
    files.write("b", PLAIN)
    config = Config.model_validate({"data": {"train_files": [str(tmp_path)]}})
    assert (
        len(
            dataset.load_labelled(
                config, Sources(config), watch, files.said.append, files.warned.append
            ).train
        )
        == 18
    )
    assert any("1 file of data.train_files without a row" in each for each in files.warned)
    assert any("a_nothing.csv" in each for each in files.warned)
