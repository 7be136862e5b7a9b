"""What the model reads as the same counts as the same."""

import csv
from pathlib import Path

import pytest
from tokenizers import normalizers

from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.data.records import conversation_sets, dataset
from llmkit.data.text.fingerprints import as_seen, of_rows, overlap
from llmkit.models import tokenizer as tokenizers

TEXTS = [
    "The Caf\u00e9 is GOOD tonight",
    "the cafe is good tonight",
    "\uff34he cafe is good tonight",
]


@pytest.fixture(scope="module")
def uncased():
    made = tokenizers.train_bpe(["the cafe is good tonight and a text of number 0123456789"], 300)
    parts = (normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase())
    made.backend_tokenizer.normalizer = normalizers.Sequence(list(parts))
    return made


@pytest.fixture(scope="module")
def cased():
    return tokenizers.train_bpe(["the cafe is good tonight and a text of number 0123456789"], 300)


def written(path: Path, header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def test_case_accents_and_width_are_seen_only_by_a_tokenizer_that_keeps_them(
    uncased, cased
) -> None:
    rows = [(text,) for text in TEXTS]
    assert len(set(as_seen(rows, uncased))) == 1
    assert len(set(as_seen(rows, cased))) == 3
    assert len(set(as_seen(rows, None))) == 3
    known = of_rows(rows[:1], uncased).kept()
    assert overlap(of_rows(rows, uncased), known).matched == 3
    assert overlap(of_rows(rows, cased), of_rows(rows[:1], cased)).matched == 1


def test_labelled_rows_that_read_the_same_are_duplicates_conflicts_and_leaks(
    tmp_path, watch, uncased
) -> None:
    plain = [(f"text number {i}", "ab"[i % 2]) for i in range(20)]
    rows = [*plain, (TEXTS[0], "a"), (TEXTS[1], "a"), (TEXTS[2], "b")]
    files = {
        "train_files": written(tmp_path / "train.csv", ("text", "label"), rows),
        "test_files": written(
            tmp_path / "test.csv", ("text", "label"), [("TEXT Number 3", "b"), ("new", "a")]
        ),
    }
    config = Config.model_validate({"data": files})
    warned: list[str] = []
    found = dataset.load_labelled(
        config, Sources(config), watch, lambda text: None, warned.append, uncased
    )
    assert found.report["duplicates"]["count_stripped"] == 2
    assert found.report["overlap"]["count_stripped"] == 1
    assert found.report["conflicts"]["count"] == 1
    assert any("as the model reads it" in text for text in warned)
    assert any(TEXTS[0] in row["text"] for row in found.report["conflicts"]["rows"])
    plainly = dataset.load_labelled(
        config, Sources(config), watch, lambda text: None, lambda text: None
    )
    assert plainly.report["duplicates"]["count_stripped"] == 0


def test_rows_that_read_the_same_are_held_out_together(tmp_path, watch, uncased) -> None:
    rows = [(each, "ab"[i % 2]) for i in range(40) for each in (f"Text {i}", f"text {i}")]
    path = written(tmp_path / "train.csv", ("text", "label"), rows)
    config = Config.model_validate({"data": {"train_files": path}})
    found = dataset.load_labelled(
        config, Sources(config), watch, lambda text: None, lambda text: None, uncased
    )
    assert found.validation is not None
    held = {texts[0].lower() for texts in found.validation.texts}
    assert len(found.validation) == 2 * len(held)
    assert not held & {texts[0].lower() for texts in found.train.texts}


def test_chats_whose_prompts_read_the_same_are_reported_and_stay_together(
    tmp_path, watch, uncased
) -> None:
    rows = [(each, f"{i}") for i in range(30) for each in (f"Say {i}", f"say {i}")]
    path = written(tmp_path / "train.csv", ("prompt", "response"), rows)
    config = Config.model_validate({"data": {"train_files": path}})
    found = conversation_sets.load_conversations(
        config, Sources(config), watch, lambda text: None, lambda text: None, uncased
    )
    assert found.report["duplicates"]["count_stripped"] == 30
    held = {each.opening[0].lower() for each in found.validation}
    assert held
    assert not held & {each.opening[0].lower() for each in found.train}
