import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.schema import Config, DataConfig
from llmkit.data.readers.files import Sources
from llmkit.data.records import dataset, labels
from llmkit.data.records.findings import describe_lookalikes, lookalikes
from llmkit.data.records.labels import MULTI, REGRESSION, SINGLE, Labels, Raw
from llmkit.errors import ConfigError, DataError
from llmkit.progress import Watch


def of(*raws: Raw, **keys: object) -> Labels:
    return labels.of(DataConfig.model_validate(keys), set(raws), "score")


@pytest.mark.parametrize(
    ("raws", "keys", "kind", "names"),
    [
        (["10", "9", "2"], {}, SINGLE, ("2", "9", "10")),
        (["1.0", "-3", "2"], {}, SINGLE, ("-3", "1.0", "2")),
        (["b", "a", "10"], {}, SINGLE, ("10", "a", "b")),
        (["NUM:dist", "HUM:ind"], {}, SINGLE, ("HUM:ind", "NUM:dist")),
        (["0.5", "2", "-1e-3"], {}, REGRESSION, ("score",)),
        (["1", "2"], {"problem_type": "regression"}, REGRESSION, ("score",)),
        (["0.5", "nan"], {}, SINGLE, ("0.5", "nan")),
        (["0.5", "1.5"], {"problem_type": SINGLE}, SINGLE, ("0.5", "1.5")),
        ([("b", "a"), ()], {}, MULTI, ("a", "b")),
        ([("x",), "y"], {}, MULTI, ("x", "y")),
        ([("2",), ("10",)], {"label_separator": ","}, MULTI, ("2", "10")),
        ([("b",)], {"label_column": ["b", "a"]}, MULTI, ("b", "a")),
    ],
)
def test_the_kind_and_the_order_of_labels_follow_from_the_data(
    raws: list[Raw], keys: dict[str, object], kind: str, names: tuple[str, ...]
) -> None:
    found = of(*raws, **keys)
    assert (found.kind, found.names) == (kind, names)


def test_a_label_becomes_its_number() -> None:
    assert of("a", "b").encode("b") == 1
    assert of(("a", "b", "c")).encode(("c", "a", "c")) == [0, 2]
    assert of(("a", "b")).encode(()) == []
    assert of("0.5").encode("-2") == -2.0


@given(st.sets(st.text(min_size=1), min_size=1))
def test_every_label_comes_back_from_its_number(names: set[str]) -> None:
    found = of(*names, problem_type=SINGLE)
    assert {found.names[int(found.encode(name))] for name in names} == names  # type: ignore[arg-type]


def test_a_label_that_is_unknown_is_reported_with_those_that_are_known() -> None:
    with pytest.raises(DataError, match="'spm' is unknown; did you mean 'spam'") as fault:
        of("ham", "spam").encode("spm", "a.csv row 3")
    assert fault.value.where == "a.csv row 3"
    assert "'ham', 'spam'" in fault.value.next
    with pytest.raises(DataError, match="not numeric"):
        of("0.5").encode("x")
    assert of("0.5").encode("-1e30") == -1e30
    for large in ("1e31", "-1e300", "1e999", "9" * 400):
        with pytest.raises(DataError, match=r"too large: numbers lie within 1e\+30 of 0"):
            of("0.5").encode(large)
    with pytest.raises(DataError, match="has 2 labels"):
        of("a", "b").encode(("a", "b"))
    with pytest.raises(DataError, match="an empty list of labels"):
        of("a", "b").encode(())
    assert of("a", "b").encode(("b",)) == 1


def test_a_file_of_names_gives_numbers_their_names(shared: Path) -> None:
    path = shared / "classify" / "goemotions" / "labels.txt"
    found = of(("27", "2"), label_names=str(path))
    assert len(found) == 28
    assert found.names == tuple(path.read_text().split("\n"))
    assert found.encode(("27", "2")) == [2, 27]
    assert found.encode("anger") == [2]
    assert found.unknown(("28", "-1", "neutral", "x")) == ["28", "-1", "x"]
    assert found.name("27") == "neutral"


@pytest.mark.parametrize(("text", "line"), [("a\nb\na\n", 3), ("a\n\nb\n", 2)])
def test_a_file_of_names_names_each_label_once(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(text)
    with pytest.raises(DataError) as fault:
        of("0", label_names=str(path))
    assert fault.value.where == f"{path}:{line}"


@pytest.mark.parametrize("keys", [{"label_separator": ","}, {"label_column": ["a", "b"]}])
def test_several_labels_and_a_kind_with_one_contradict_each_other(keys: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"data\.problem_type"):
        of("a", problem_type=SINGLE, **keys)


def test_names_that_differ_in_their_spelling_only_are_found() -> None:
    assert lookalikes(["Yes", "no", "yes", "1", "1.0", "2"]) == [["Yes", "yes"], ["1", "1.0"]]


MARKS = [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]]


def written(path: Path, marks: Sequence[Any]) -> Path:
    """60 rows with these labels in turn."""
    rows = [{"text": f"text number {n}", "label": marks[n % len(marks)]} for n in range(60)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *(row.values() for row in rows)])
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(path: Path, watch: Watch, **data: object) -> tuple[Labels, list[int], list[str]]:
    """The labels of a file, how many rows have each, and the warnings."""
    warnings: list[str] = []
    given = {"train_files": [str(path)], "validation_fraction": 0, "allow": ["one_row_classes"]}
    config = Config.model_validate({"data": {**given, **data}})
    found = dataset.load_labelled(
        config, Sources(config), watch, lambda text: None, warnings.append
    )
    return found.labels, found.train.targets.sum(0).astype(int).tolist(), warnings


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize(
    "kind",
    [list, lambda m: list(map(bool, m)), lambda m: list(map(float, m)), str, json.dumps,
     lambda m: str(list(map(bool, m))), lambda m: f"[{' '.join(map(str, m))}]"],
)  # fmt: skip
def test_lists_of_0_and_1_mark_one_label_for_each_place(
    tmp_path: Path, watch: Watch, suffix: str, kind: Callable[[list[int]], Any]
) -> None:
    path = written(tmp_path / f"a.{suffix}", [kind(each) for each in MARKS])
    found, counts, warnings = loaded(path, watch)
    assert (found.kind, found.names, counts) == (MULTI, ("0", "1", "2"), [30, 30, 0])
    assert any("lists of 0 and 1: 3 labels" in each for each in warnings)
    names = tmp_path / "names.txt"
    names.write_text("joy\nanger\nfear\n")
    found, counts, _ = loaded(path, watch, label_names=str(names))
    assert (found.names, counts) == (("joy", "anger", "fear"), [30, 30, 0])
    names.write_text("joy\nanger\n")
    with pytest.raises(DataError, match="has 2 names, but rows have lists of 3"):
        loaded(path, watch, label_names=str(names))


def test_marks_for_two_labels_and_objects_of_marks_are_read_alike(
    tmp_path: Path, watch: Watch
) -> None:
    two = written(tmp_path / "a.jsonl", [[1, 0], [0, 1], [1, 1], [0, 0]])
    assert loaded(two, watch)[1] == [30, 30]
    named = [{"joy": 1, "fear": 0}, {"joy": True, "fear": True}]
    found, counts, _ = loaded(written(tmp_path / "b.jsonl", named), watch)
    assert (found.names, counts) == (("fear", "joy"), [30, 60])


@pytest.mark.parametrize(
    ("marks", "names", "counts"),
    [
        ([["a", "b"], ["b"], []], ("a", "b"), [20, 40]),
        ([[2, 5], [0], [1, 0]], ("0", "1", "2", "5"), [40, 20, 20, 20]),
        ([[0], [1], [0, 1]], ("0", "1"), [40, 40]),
        (["['a', 'b']", "['b']", "[]"], ("a", "b"), [20, 40]),
    ],
)
def test_lists_of_names_stay_sets(
    tmp_path: Path, watch: Watch, marks: list[Any], names: tuple[str, ...], counts: list[int]
) -> None:
    found, counted, _ = loaded(written(tmp_path / "a.jsonl", marks), watch)
    assert (found.names, counted) == (names, counts)


@pytest.mark.parametrize(
    ("marks", "said"),
    [
        ([[1, 0, 0], [1, 0]], "of different lengths, from 2 to 3"),
        ([[0.9, 0.1], [0.2, 0.8]], "list of fractions"),
        ([[["a"]], [["b"]]], "this one is list"),
        ([{"a": "x"}, {"b": "y"}], "this one is dict"),
    ],
)
def test_lists_that_are_not_labels_are_refused(
    tmp_path: Path, watch: Watch, marks: list[Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        loaded(written(tmp_path / "a.jsonl", marks), watch)


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        ("neg", "neg\u200b", "U+200B ZERO WIDTH SPACE"),
        ("very good", "very\u00a0good", "U+00A0 NO-BREAK SPACE"),
        ("caf\u00e9", "cafe\u0301", "U+0301 COMBINING ACUTE ACCENT"),
        ("cat", "c\u0430t", "U+0430 CYRILLIC SMALL LETTER A"),
        ("a", "\uff41", "U+FF41 FULLWIDTH LATIN SMALL LETTER A"),
        ("neg", "\ufeffneg", "U+FEFF ZERO WIDTH NO-BREAK SPACE"),
        ("pos", "POS", "'POS'"),
        ("yes", "yes.", "'yes.'"),
        ("Stra\u00dfe", "STRASSE", "U+00DF"),
        ("1", "1.0", "'1.0'"),
    ],
)
def test_labels_that_look_alike_are_named_with_their_characters(
    one: str, other: str, named: str
) -> None:
    [group] = lookalikes([one, "unlike", other])
    assert group == [one, other]
    assert named in describe_lookalikes(group)
    assert lookalikes(["a", "b", "c++", "c", "нет", "да"]) == []
