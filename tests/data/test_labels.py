from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.schema import DataConfig
from llmkit.data import labels
from llmkit.data.labels import MULTI, REGRESSION, SINGLE, Labels, Raw
from llmkit.errors import ConfigError, DataError


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
    assert found.id2label == dict(enumerate(names))


def test_a_label_becomes_its_number() -> None:
    assert of("a", "b").encode("b") == 1
    assert of(("a", "b", "c")).encode(("c", "a", "c")) == [0, 2]
    assert of(("a", "b")).encode(()) == []
    assert of("0.5").encode("-2") == -2.0


@given(st.sets(st.text(min_size=1), min_size=1))
def test_every_label_comes_back_from_its_number(names: set[str]) -> None:
    found = of(*names, problem_type=SINGLE)
    assert {found.id2label[int(found.encode(name))] for name in names} == names  # type: ignore[arg-type]


def test_a_label_that_is_unknown_is_told_with_those_that_are_known() -> None:
    with pytest.raises(DataError, match="'spm' is unknown; did you mean 'spam'") as fault:
        of("ham", "spam").encode("spm", "a.csv row 3")
    assert fault.value.where == "a.csv row 3"
    assert "'ham', 'spam'" in fault.value.next
    with pytest.raises(DataError, match="no number"):
        of("0.5").encode("x")
    with pytest.raises(DataError, match="has 2 labels"):
        of("a", "b").encode(("a", "b"))


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
    assert labels.alike(["Yes", "no", "yes", "1", "1.0", "2"]) == [["Yes", "yes"], ["1", "1.0"]]
