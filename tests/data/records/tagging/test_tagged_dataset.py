"""Data sets of tagged words: what is refused or skipped, named with its line, and the split."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.data.records.tagging import tagged_dataset
from llmkit.data.records.tagging.tags import BILOU, BIO, PLAIN_TAGS, TagSet
from llmkit.errors import DataError
from llmkit.progress import Watch

NAMES = ("Anna", "Bob", "Carla", "Dmitri")


def sentences(n: int, seed: int = 0) -> str:
    """CoNLL sentences of a name and other words."""
    chance = random.Random(seed)
    made = []
    for number in range(n):
        tag = "B-PER" if number % 5 else "B-LOC"
        made.append(f"{chance.choice(NAMES)} {tag}\nsaw O\n{number} O\n")
    return "\n".join(made)


class Files:
    """Writes files and loads them."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self.folder, self.watch = folder, watch
        self.said: list[str] = []
        self.warned: list[str] = []

    def config(self, **files: Any) -> Config:
        keys: dict[str, Any] = {}
        for key, value in files.items():
            if isinstance(value, str) and "\n" in value:
                suffix = "jsonl" if value.startswith("{") else "conll"
                path = self.folder / f"{key}.{suffix}"
                path.write_text(value, encoding="utf-8")
                keys[f"{key}_files"] = str(path)
            else:
                keys[key] = value
        return Config.model_validate({"data": keys})

    def load(self, **files: Any) -> Any:
        config = self.config(**files)
        return tagged_dataset.load_tagged(
            config, Sources(config), self.watch, self.said.append, self.warned.append
        )

    def fault(self, **files: Any) -> DataError:
        with pytest.raises(DataError) as fault:
            self.load(**files)
        assert fault.value.where
        assert fault.value.next
        return fault.value


@pytest.fixture
def loader(tmp_path: Path, watch: Watch) -> Files:
    return Files(tmp_path, watch)


def test_a_data_set_is_read_split_and_reported(loader: Files) -> None:
    data = loader.load(train=sentences(40), test=sentences(10, seed=1))
    assert data.labels == TagSet(BIO, ("O", "B-LOC", "I-LOC", "B-PER", "I-PER"))
    assert (data.data.text_column, data.data.label_column) == (0, 1)
    assert data.data.tag_scheme == BIO
    report = data.report
    assert (report["rows"], report["words"], report["tag_scheme"]) == (40, 120, BIO)
    assert report["classes"] == {"LOC": 8, "PER": 32}
    assert report["splits"]["train"]["rows"] + report["splits"]["validation"]["rows"] == 40
    assert report["splits"]["validation"]["classes"]["LOC"] == 1
    assert report["splits"]["test"] == {"rows": 10, "words": 30, "classes": {"LOC": 2, "PER": 8}}
    assert [each.partition(":")[0] for each in loader.warned] == [
        "3 rows of data.test_files with a text that training or validation data holds too"
    ]
    assert "found data.text_column=0, data.label_column=1" in loader.said[0]


def test_tags_that_do_not_follow_the_scheme_are_named_with_file_and_line(loader: Files) -> None:
    bad = "x O\nI I-PER\n\nBob B-PER\nBerg I-LOC\n"
    fault = loader.fault(train=sentences(4) + "\n" + bad)
    path = loader.folder / "train.conll"
    assert fault.where == f"{path}:18; {path}:21"
    assert "2 rows of data.train_files with a tag that does not follow the scheme" in fault.what
    assert "the first: 'I-PER' after 'O' continues no entity" in fault.what
    assert "data.allow=[bad_tags]" in fault.next
    data = loader.load(train=sentences(20) + "\n" + bad, allow=["bad_tags"])
    assert sum(each["rows"] for each in data.report["splits"].values()) == 20
    assert data.report["bad_tags"]["count"] == 2
    assert data.report["bad_tags"]["rows"][0]["reason"].startswith("'I-PER' after 'O'")
    assert any("these rows are skipped" in each for each in loader.warned)


def lines(*rows: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


GOOD = [{"tokens": ["a", name, str(n)], "tags": ["O", "B-X", "O"]} for n, name in
        enumerate(NAMES * 3)]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "name", "said"),
    [
        ({"tokens": ["a"], "tags": ["O", "O"]}, "tag_count", "1 tokens and 2 tags"),
        ({"tokens": ["a"], "tags": ["I-X"]}, "bad_tags", "at the beginning continues no entity"),
        ({"tokens": ["a"], "tags": ["X"]}, "bad_tags", "'X' is neither O nor a tag with"),
    ],
)
def test_each_kind_of_bad_row_is_refused_or_skipped_by_its_own_rule(
    loader: Files, row, name, said
) -> None:
    fault = loader.fault(train=lines(*GOOD, row))
    assert said in fault.what
    assert f"{loader.folder}/train.jsonl:13" in fault.where
    assert f"data.allow=[{name}]" in fault.next
    other = {"bad_tags": "tag_count", "tag_count": "bad_spans"}[name]
    assert said in loader.fault(train=lines(*GOOD, row), allow=[other]).what
    data = loader.load(train=lines(*GOOD, row), allow=[name])
    assert data.report[name]["count"] == 1


def test_bad_spans_are_refused_or_skipped(loader: Files) -> None:
    good = [{"text": f"{name} saw {n}", "spans": [[0, len(name), "PER"]]} for n, name in
            enumerate(NAMES * 3)]  # fmt: skip
    bad = {"text": "Anna Berg", "spans": [[0, 4, "PER"], [2, 9, "PER"]]}
    fault = loader.fault(train=lines(*good, bad))
    assert "with a span that cannot be read, the first: the span 2-9 (PER) overlaps" in fault.what
    data = loader.load(train=lines(*good, bad), allow="bad_spans")
    assert data.report["bad_spans"]["count"] == 1
    wide = {"text": "Annas hat", "spans": [[0, 4, "PER"]]}
    data = loader.load(train=lines(*good, wide))
    assert any("widened to whole words" in each for each in loader.warned)


def test_several_problems_are_reported_together(loader: Files) -> None:
    rows = [{"tokens": ["a"], "tags": ["O", "O"]}, {"tokens": ["a"], "tags": ["I-X"]}]
    fault = loader.fault(train=lines(*GOOD, *rows))
    assert "1 tokens and 2 tags" in fault.what
    assert "continues no entity" in fault.what
    assert "data.allow=[tag_count, bad_tags]" in fault.next


def test_a_type_that_training_lacks_is_refused(loader: Files) -> None:
    fault = loader.fault(train=sentences(20), test="x B-ORG\ny O\n")
    assert "labels that data.train_files does not have: 'B-ORG'" in fault.what
    # A tag of a known type is part of its scheme.
    data = loader.load(train=sentences(20), test="x B-PER\ny I-PER\n")
    assert data.test.counts()["classes"]["PER"] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a O\n\nb O\n", "every word of data.train_files has the tag 'O'"),
        ("a NN\n\nb NN\n", "every word of data.train_files has the tag 'NN'"),
        ("a B-X\nb\n", "this line has 1 columns"),
        ("only\nwords\n", "which column has the tags"),
    ],
)
def test_data_that_teaches_nothing_is_refused(loader: Files, text: str, said: str) -> None:
    assert said in loader.fault(train=text).what


def test_forced_scheme_without_entities_is_refused(loader: Files) -> None:
    fault = loader.fault(train="a O\n\nb O\n", tag_scheme="bio")
    assert "no row of data.train_files has an entity" in fault.what


def test_iob1_is_read_as_bio_and_reported(loader: Files) -> None:
    old = sentences(20).replace("B-", "I-") + "\nAnna I-PER\nBerg I-PER\nBob B-PER\n"
    data = loader.load(train=old, validation=sentences(5))
    assert data.labels.scheme == BIO
    assert data.report["classes"] == {"LOC": 4, "PER": 18}
    assert [each for each in loader.said if "are IOB1" in each] == [
        "the tags of data.train_files are IOB1, where B- only separates entities: read as BIO"
    ]


def test_the_scheme_is_detected_or_given(loader: Files) -> None:
    assert loader.load(train=sentences(20).replace("B-", "U-")).labels.scheme == BILOU
    plain = loader.load(train=sentences(20).replace("B-PER", "NOUN").replace("B-LOC", "ADJ"))
    assert plain.labels.scheme == PLAIN_TAGS
    assert plain.report["splits"]["train"]["classes"].keys() == {"ADJ", "NOUN", "O"}
    given = loader.load(train=sentences(20), tag_scheme="plain")
    assert given.labels.names == ("B-LOC", "B-PER", "O")


def test_numbered_tags_get_their_names(loader: Files, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("O\nB-PER\nI-PER\n")
    numbered = [{"tokens": ["Anna", "Berg", str(n)], "ner_tags": [1, 2, 0]} for n in range(9)]
    data = loader.load(train=lines(*numbered), label_names=str(names))
    assert data.labels == TagSet(BIO, ("O", "B-PER", "I-PER"), from_file=True)
    assert data.report["classes"] == {"PER": 9}
    data = loader.load(train=lines(*numbered))
    assert data.labels.scheme == PLAIN_TAGS
    assert any("data.label_names=FILE gives their names" in each for each in loader.warned)
    wrong = [{"tokens": ["x"], "ner_tags": [2]}]
    fault = loader.fault(train=lines(*numbered, *wrong), label_names=str(names))
    assert "'I-PER' at the beginning" in fault.what


def test_all_predicates_of_a_sentence_stay_on_one_side(loader: Files) -> None:
    rows = [
        {"tokens": [name, "ran", str(n)], "tags": ["B-A0", "O", "O"], "predicate": mark}
        for n, name in enumerate(NAMES * 8)
        for mark in (1, 2)
    ]
    data = loader.load(train=lines(*rows))
    sides = [{text for (text,) in each.sides} for each in (data.train, data.validation)]
    assert not sides[0] & sides[1]
    assert len(data.validation) == 2 * len(sides[1])
    assert data.report["duplicates"]["count_stripped"] == 0  # other marks, other texts
    assert data.data.mark_column == "predicate"


def test_repeated_and_contradicting_sentences_are_found(loader: Files) -> None:
    again = "Anna O\nsaw O\nit O\n\nAnna B-PER\nsaw O\nit O\n\nAnna B-PER\nsaw O\nit O\n"
    data = loader.load(train=sentences(10) + "\n" + again)
    assert data.report["duplicates"]["count"] == 2
    assert data.report["conflicts"]["count"] == 1
    assert data.report["conflicts"]["rows"][0]["labels"].keys() == {"O O O", "B-PER O O"}


def test_blank_rows_are_counted(loader: Files) -> None:
    rows = [{"tokens": [], "tags": []}, {"tokens": ["a"], "tags": None}]
    data = loader.load(train=lines(*GOOD, *rows))
    assert data.report["blank"]["count"] == 2


def test_known_tags_are_read_for_a_trained_tagger(loader: Files) -> None:
    known = TagSet(BIO, ("O", "B-PER", "I-PER"))
    config = loader.config(test="Anna B-PER\n\nx B-LOC\n", text_column=0, label_column=1)

    def loaded(**keys: Any) -> Any:
        found, data = Sources(config).of("data.test_files"), config.data.changed(**keys)
        return tagged_dataset.load_known_tags(
            found, data, "test", known, loader.watch, loader.warned.append
        )

    with pytest.raises(DataError, match="the model does not know: 'B-LOC'; it knows 'PER'"):
        loaded()
    table = loaded(allow=("unseen_labels",))
    assert table.targets.tolist() == [1]
