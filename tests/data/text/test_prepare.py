import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.data.text import spooling
from llmkit.data.text.prepare import Prepared, data_report, prepare_domains, tokens_of
from llmkit.errors import DataError, InputNotFound
from llmkit.models import tokenizer as tokenizers
from llmkit.progress import Say, Watch
from tests.jobs import calls_of


def config(seed: int = 0, **data: Any) -> Config:
    return Config.model_validate({"seed": seed, "data": data})


def prepare(config: Config, watch: Watch, say: Say) -> Prepared:
    """The data without a mixture."""
    return prepare_domains(config, Sources(config), None, watch, say)[""]


def decoded(prepared: Prepared) -> list[str]:
    """The documents of both parts, as text."""
    texts = []
    for part in (prepared.train, prepared.validation):
        assert part is not None
        text = prepared.tokenizer.decode(part.ids)
        texts += (
            text.removeprefix("<|endoftext|>").removesuffix("<|endoftext|>").split("<|endoftext|>")
        )
    return texts


@pytest.fixture
def poems(tmp_path: Path) -> list[str]:
    """Two hundred documents in one file, parted by blank lines."""
    texts = [f"第{i}首\nline {i} of café\tpoem 🙂" for i in range(200)]
    (tmp_path / "poems.txt").write_text("\n\n".join(texts), encoding="utf-8")
    return texts


def test_raw_text_becomes_tokens_and_comes_back_exactly(
    tmp_path: Path, poems: list[str], watch: Watch
) -> None:
    said: list[str] = []
    settings = config(train_files=str(tmp_path / "poems.txt"), document="blank_line")
    prepared = prepare(settings, watch, said.append)
    assert sorted(decoded(prepared)) == sorted(poems)
    assert prepared.validation is not None
    assert len(prepared.validation.starts) >= 18
    assert any("documents" in line and "bytes per token" in line for line in said)


def test_all_progress_reaches_its_total(tmp_path: Path, poems: list[str]) -> None:
    left: dict[str, int] = {}

    @contextmanager
    def counted(label: str, total: int) -> Iterator[Callable[[int], None]]:
        left[label] = total

        def advance(amount: int) -> None:
            left[label] -= amount

        yield advance

    settings = config(train_files=str(tmp_path / "poems.txt"), document="blank_line")
    prepare(settings, counted, [].append)
    assert {"training a tokenizer", "tokenizing"} <= left.keys()
    assert left == dict.fromkeys(left, 0)


def test_all_work_on_a_text_has_a_name_and_one_at_a_time(tmp_path: Path, poems: list[str]) -> None:
    began: list[str] = []
    open_now: list[str] = []
    unnamed = {"split": 0, "TokenEncoder.__init__": 0}

    @contextmanager
    def named(label: str, total: int) -> Iterator[Callable[[int], None]]:
        assert open_now == []  # a terminal shows one piece of work
        began.append(label)
        open_now.append(label)
        yield lambda amount: None
        open_now.pop()

    def notice(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (name := frame.f_code.co_qualname) in unnamed:
            unnamed[name] += not open_now

    settings = config(train_files=str(tmp_path / "poems.txt"), document="blank_line")
    before = sys.getprofile()
    sys.setprofile(notice)
    try:
        prepare(settings, named, [].append)
    finally:
        sys.setprofile(before)
    assert set(unnamed.values()) == {0}
    order = ["looking for prepared data", "reading", "choosing held-out text",
             "training a tokenizer", "tokenizing"]  # fmt: skip
    assert [label for label in dict.fromkeys(began) if label in order] == order


def test_what_is_held_out_of_one_file_is_named(
    tmp_path: Path, poems: list[str], watch: Watch
) -> None:
    for document, held_out in (("blank_line", "21 documents"), ("file", "the end")):
        said: list[str] = []
        path = str(tmp_path / "poems.txt")
        prepare(config(train_files=path, document=document), watch, said.append)
        assert f"held out: {held_out} of poems.txt" in said


def test_a_second_run_reads_nothing_again(
    tmp_path: Path, poems: list[str], watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(train_files=str(tmp_path / "poems.txt"), document="blank_line")
    with calls_of(spooling.spool, tokenizers.train_bpe) as calls:
        first = prepare(settings, watch, print)
        assert len(calls) == 2
        with caplog.at_level("INFO", logger="llmkit"):
            second = prepare(settings, watch, print)
    assert len(calls) == 2
    assert second.train.reused
    assert second.train.fingerprint == first.train.fingerprint
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    assert sum("reused" in line for line in caplog.messages) == 3


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"document": "line"}, {"validation_fraction": 0.3}, {"text": "more"}]
)
def test_whatever_changes_the_tokens_makes_them_again(
    tmp_path: Path, poems: list[str], watch: Watch, change: dict[str, Any]
) -> None:
    path = tmp_path / "poems.txt"
    settings: dict[str, Any] = {"train_files": str(path), "document": "blank_line"}
    prepare(config(**settings), watch, print)
    if text := change.pop("text", ""):
        path.write_text(path.read_text() + text)
    assert not prepare(config(**settings | change), watch, print).train.reused


def test_what_is_held_out_trains_no_tokenizer(tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "a.txt").write_text("plain words\n" * 900 + "zyxwv zyxwv\n" * 99)
    settings = config(train_files=str(tmp_path / "a.txt"), validation_fraction=0.1)
    prepared = prepare(settings, watch, print)
    assert not any("zy" in token for token in prepared.tokenizer.get_vocab())


def test_validation_files_leave_the_training_text_whole(tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "train.txt").write_text("some words to train on\n" * 50)
    (tmp_path / "held_out.txt").write_text("others\n")
    settings = config(
        train_files=str(tmp_path / "train.txt"), validation_files=str(tmp_path / "held_out.txt")
    )
    prepared = prepare(settings, watch, print)
    assert prepared.validation
    assert (prepared.train.n_bytes, prepared.validation.n_bytes) == (23 * 50, 7)


def test_nothing_is_held_out_where_the_fraction_is_zero(tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "a.txt").write_text("some words")
    settings = config(train_files=str(tmp_path / "a.txt"), validation_fraction=0)
    assert prepare(settings, watch, print).validation is None


@pytest.mark.parametrize(
    ("content", "part"), [(" \n \n", "blank"), ("a", "too little text for validation: 0 tokens")]
)
def test_too_little_text_is_reported(tmp_path: Path, watch: Watch, content: str, part: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError, match=part):
        prepare(config(train_files=str(tmp_path / "a.txt")), watch, print)


def test_a_key_without_files_is_not_found(watch: Watch) -> None:
    with pytest.raises(InputNotFound, match=r"data\.train_files is not given"):
        prepare(config(), watch, print)


def test_less_than_a_block_is_said(tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "a.txt").write_text("a few words and no more than that")
    said: list[str] = []
    settings = config(train_files=str(tmp_path / "a.txt"), block_size=512)
    prepare(settings, watch, said.append)
    assert sum("less than one block of 512" in line for line in said) == 2


def test_what_reading_leaves_out_is_said(tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\n  \ntwo \xff\xfe words\n" * 5)
    said: list[str] = []
    settings = config(
        train_files=str(tmp_path / "a.txt"),
        document="line",
        errors="replace",
        validation_fraction=0,
    )
    for _ in range(2):
        prepare(settings, watch, said.append)
    lines = [line for line in said if line.startswith("data.train_files")]
    assert len(lines) == 2
    assert all(
        "10 blank skipped" in line and "10 bytes that are not utf-8" in line for line in lines
    )


def test_any_key_can_be_tokenized_with_a_given_tokenizer(tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "a.txt").write_text("one two")
    tokenizer = tokenizers.train_bpe(["one two"], 300)
    settings, key = config(test_files=str(tmp_path / "a.txt")), "data.test_files"
    made = tokens_of(Sources(settings).of(key), key, settings, tokenizer, watch, print)
    assert tokenizer.decode(made.ids) == "<|endoftext|>one two<|endoftext|>"


def test_the_report_reads_everything_and_writes_nothing(
    tmp_path: Path, own_cache: Path, watch: Watch
) -> None:
    (tmp_path / "a.csv").write_text("text\none\n\ntwo\n")
    (tmp_path / "b.txt").write_text("three")
    settings = config(train_files=[str(tmp_path / "a.csv"), str(tmp_path / "b.txt")])
    report = data_report(settings, Sources(settings), watch)["train_files"]
    assert (report["documents"], report["blank"], report["text_bytes"]) == (3, 1, 11)
    assert [file["format"] for file in report["files"]] == ["csv", "txt"]
    assert not own_cache.exists()
    (tmp_path / "a.csv").write_text('text\none\n"two\n')
    with pytest.raises(DataError):
        data_report(settings, Sources(settings), watch)
