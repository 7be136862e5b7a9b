import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.schema import DataConfig
from llmkit.data.readers import files
from llmkit.data.text import corpus, spooling
from llmkit.data.text.corpus import Documents
from llmkit.data.text.spooled import Corpus
from llmkit.errors import DataError, LlmkitError


def spooled(*contents: str, document: str = "file") -> Corpus:
    with tempfile.TemporaryDirectory() as directory:
        for number, content in enumerate(contents):
            Path(directory, f"{number:04}.txt").write_bytes(content.encode())
        found = files.find([directory], "data.train_files")
        data = DataConfig.model_validate({"document": document})
        return spooling.spool(found, data, Path(directory), lambda n_bytes: None)


def texts(documents: Documents) -> list[str]:
    whole, text = [], ""
    for piece in documents.pieces():
        text += piece.text
        if piece.last:
            whole.append(text)
            text = ""
    assert not text
    assert len(whole) == documents.n_documents
    assert sum(len(each.encode()) for each in whole) == documents.n_bytes
    sizes = [size for some in documents.sizes() for size in some.tolist()]
    assert sizes == [len(each.encode()) for each in whole]
    return whole


def test_a_corpus_holds_the_documents_and_counts_the_blank_ones() -> None:
    made = spooled("one\ntwo", "", " \n\u3000\n", "three", document="line")
    assert texts(corpus.everything(made)) == ["one", "two", "three"]
    assert (made.n_documents, made.n_bytes, made.blank) == (3, 11, 2)
    assert made.ranges == ((0, 2), (2, 2), (2, 2), (2, 3))


def test_a_long_blank_document_leaves_nothing_behind() -> None:
    made = spooled("a", " " * 600_000, "b" + " " * 600_000, "c")
    assert texts(corpus.everything(made)) == ["a", "b" + " " * 600_000, "c"]
    assert made.blank == 1


def test_a_long_document_comes_in_pieces_that_break_no_character() -> None:
    text = "a" + "你好é" * 500_000
    made = spooled(text)
    assert texts(corpus.everything(made)) == [text]
    assert max(len(piece.text) for piece in corpus.everything(made).pieces()) <= 1 << 20


def test_windows_are_spread_over_a_long_document_and_break_no_character() -> None:
    made = spooled("short é你", "".join(f"{n:03}é" for n in range(1000)))
    assert made.windows(0, 4, 3) == "short é你"
    windows = made.windows(1, 12, 3).split("\n")
    assert len(windows) == 3
    assert windows[0] == "000é001é00"
    assert windows[2].endswith("999é")
    assert all(len(each.encode()) <= 12 for each in windows)
    assert windows[1].strip("é")[:3].isdigit()
    assert 450 < int("".join(filter(str.isdigit, windows[1]))[:3]) < 550


@given(
    st.lists(st.text("ab\né你", min_size=1, max_size=30), min_size=1, max_size=12),
    st.sampled_from(["auto", 0.01, 0.1, 0.5, 0.9]),
    st.integers(0, 5),
)
def test_every_byte_is_on_exactly_one_side(
    contents: list[str], fraction: float | str, seed: int
) -> None:
    made = spooled(*(f"{i}.{content}" for i, content in enumerate(contents)))
    train, validation = corpus.split(made, fraction, seed)
    learned, kept = texts(train), texts(validation)
    assert train.n_bytes + validation.n_bytes == made.n_bytes
    assert learned
    remaining = list(kept)
    rebuilt = []
    for document in texts(corpus.everything(made)):
        if learned and learned[0] == document:
            rebuilt.append(learned.pop(0))
        elif remaining and remaining[0] == document:
            rebuilt.append(remaining.pop(0))
        else:
            assert document == learned[0] + remaining[0]
            rebuilt.append(learned.pop(0) + remaining.pop(0))
    assert not learned
    assert not remaining


def test_whole_documents_are_held_out_in_an_order_of_the_seed() -> None:
    made = spooled(*(f"document number {i}" for i in range(200)))
    drawn = {seed: tuple(texts(corpus.split(made, 0.1, seed)[1])) for seed in (0, 0, 1)}
    assert drawn[0] != drawn[1]
    for documents in drawn.values():
        assert 0.1 * made.n_bytes <= sum(map(len, documents)) <= 0.12 * made.n_bytes
        assert documents != tuple(texts(corpus.everything(made))[: len(documents)])


def held(made: Corpus, fraction: float | str, seed: int = 0) -> list[tuple[int, int]]:
    """The documents held out, and how many bytes of each."""
    _, validation = corpus.split(made, fraction, seed)
    sizes = [size for some in validation.sizes() for size in some.tolist()]
    return list(zip(validation.chosen.nonzero()[0].tolist(), sizes, strict=True))


def test_a_huge_document_gives_a_segment_beside_whole_small_ones() -> None:
    made = spooled("x" * 10_000, *("y" * 100 for _ in range(30)))
    for seed in range(5):
        sizes = dict(held(made, 0.1, seed))
        assert sizes.pop(0) == pytest.approx(1000, rel=0.01)
        assert list(sizes.values()) == [100] * 3


def test_each_of_a_few_files_gives_its_end_whatever_its_size() -> None:
    lines = "a line of this text\n"
    made = spooled(lines * 50_000, lines * 150_000, *(lines * (500 + 80 * n) for n in range(13)))
    sizes = dict(held(made, "auto"))
    assert sorted(sizes) == list(range(15))
    wanted = corpus.held_out_share(made.n_bytes, "auto")
    for document, size in sizes.items():
        whole = int(made.ends[document]) - made.start(document)
        assert size == pytest.approx(wanted * whole, rel=0.05)


def test_a_scrap_beside_large_files_is_trained_on_whole() -> None:
    made = spooled("numpy\n", "word " * 3000, "text " * 3000)
    assert [document for document, _ in held(made, 0.1)] == [1, 2]


def test_every_file_of_many_documents_gives_its_share_of_whole_ones() -> None:
    texts = [
        "\n".join(f"{name} says {i}" for i in range(n))
        for name, n in zip("ab", (400, 900), strict=True)
    ]
    made = spooled(*texts, document="line")
    for seed in range(3):
        chosen = [document for document, _ in held(made, 0.1, seed)]
        assert sum(document < 400 for document in chosen) == pytest.approx(40, abs=3)
        assert sum(document >= 400 for document in chosen) == pytest.approx(90, abs=4)


def test_small_text_beside_much_is_held_out_by_its_own_share() -> None:
    made = spooled(*("z" * 100_000 for _ in range(100)), *("y" * 50 for _ in range(100)))
    sizes = [size for _, size in held(made, 0.1, 1)]
    assert sizes.count(100_000) == 10
    assert sizes.count(50) == 10


@given(st.lists(st.integers(1, 40_000), min_size=3, max_size=60), st.integers(0, 3))
def test_never_more_than_a_third_of_the_documents_is_kept_from_training(
    lengths: list[int], seed: int
) -> None:
    made = spooled(*("w " * (length // 2) + "w" for length in lengths))
    train, validation = corpus.split(made, 0.1, seed)
    whole = made.n_documents - train.n_documents
    assert whole <= max(1, made.n_documents / 3)
    assert validation.n_bytes <= 0.25 * made.n_bytes + 1


def test_a_segment_begins_after_a_paragraph_where_one_is_near() -> None:
    text = "".join(f"line {i}\n" + "\n" * (i % 5 == 0) for i in range(1000))
    [learned], [kept] = map(texts, corpus.split(spooled(text), 0.1, 0))
    assert learned.endswith("\n\n")
    assert learned + kept == text


def test_a_segment_of_chinese_begins_after_a_sentence() -> None:
    [learned], [kept] = map(texts, corpus.split(spooled("你好嗎。" * 1000), 0.1, 0))
    assert learned.endswith("。")
    assert kept.startswith("你")


def test_the_end_of_a_single_document_is_held_out_from_a_line_break() -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    [learned], [kept] = map(texts, corpus.split(spooled(text), 0.1, 0))
    assert learned + kept == text
    assert learned.endswith("\n")
    assert len(kept) == pytest.approx(0.1 * len(text), rel=0.01)


def test_a_line_without_breaks_is_split_between_characters() -> None:
    [learned], [kept] = map(texts, corpus.split(spooled("你" * 1000), 0.1, 0))
    assert len(learned) + len(kept) == 1000
    assert 95 <= len(kept) <= 100


def test_auto_holds_out_a_tenth_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = spooled("word\n" * 2000)
    assert corpus.split(made, "auto", 0)[1].n_bytes == 1000
    monkeypatch.setattr(corpus, "AUTO_BYTES", 500)
    assert corpus.split(made, "auto", 0)[1].n_bytes == 500


def test_a_sample_is_taken_evenly() -> None:
    made = spooled(*(f"{i:05d} " * 10 for i in range(3000)))
    whole = corpus.everything(made)
    assert "".join(whole.sample(10**9)) == "".join(texts(whole))
    sample = "".join(whole.sample(6000, size=100))
    assert 5900 <= len(sample) <= 6100
    numbers = [int(word) for word in sample.split() if len(word) == 5]
    assert numbers == sorted(numbers)
    for low in range(0, 3000, 500):
        assert any(low <= number < low + 500 for number in numbers)
    long = corpus.everything(spooled("0123456789" * 10_000))
    assert len("".join(long.sample(5000, size=100))) == 5000


def test_a_fault_while_reading_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(b"a\xff")
    found = files.find([str(tmp_path / "text")], "data.train_files")
    with pytest.raises(DataError):
        spooling.spool(found, DataConfig(), tmp_path / "cache", lambda n_bytes: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_signal_while_reading_is_heard(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 1_000_000)

    def stop(n_bytes: int) -> None:
        raise LlmkitError("stop")

    with pytest.raises(LlmkitError, match="stop"):
        spooling.spool(
            files.find([str(tmp_path / "a.txt")], "data.train_files"),
            DataConfig(),
            tmp_path,
            stop,
        )
