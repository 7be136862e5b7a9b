import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.schema import DataConfig
from llmkit.data import corpus, sources
from llmkit.data.corpus import Corpus, Documents
from llmkit.errors import DataError, LlmkitError


def spooled(*contents: str, document: str = "file") -> Corpus:
    with tempfile.TemporaryDirectory() as directory:
        for number, content in enumerate(contents):
            Path(directory, f"{number:04}.txt").write_bytes(content.encode())
        found = sources.find([directory], "data.train_files")
        data = DataConfig.model_validate({"document": document})
        return corpus.spool(found, data, Path(directory), lambda n_bytes: None)


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
    learned, held_out = texts(train), texts(validation)
    assert train.n_bytes + validation.n_bytes == made.n_bytes
    assert learned
    remaining = list(held_out)
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


def test_whole_documents_are_held_out_in_an_order_that_hangs_on_the_seed() -> None:
    made = spooled(*(f"document number {i}" for i in range(200)))
    held_out = {seed: tuple(texts(corpus.split(made, 0.1, seed)[1])) for seed in (0, 0, 1)}
    assert held_out[0] != held_out[1]
    for documents in held_out.values():
        assert 0.1 * made.n_bytes <= sum(map(len, documents)) <= 0.12 * made.n_bytes
        assert documents != tuple(texts(corpus.everything(made))[: len(documents)])


def test_a_huge_document_is_passed_over() -> None:
    made = spooled("x" * 10_000, *("y" * 100 for _ in range(30)))
    for seed in range(5):
        assert set(texts(corpus.split(made, 0.1, seed)[1])) == {"y" * 100}


def test_the_end_of_a_single_document_is_held_out_from_a_line_break() -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    [learned], [held_out] = map(texts, corpus.split(spooled(text), 0.1, 0))
    assert learned + held_out == text
    assert learned.endswith("\n")
    assert len(held_out) == pytest.approx(0.1 * len(text), rel=0.01)


def test_a_line_without_breaks_is_parted_between_characters() -> None:
    [learned], [held_out] = map(texts, corpus.split(spooled("你" * 1000), 0.1, 0))
    assert len(learned) + len(held_out) == 1000
    assert 95 <= len(held_out) <= 100


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
    found = sources.find([str(tmp_path / "text")], "data.train_files")
    with pytest.raises(DataError):
        corpus.spool(found, DataConfig(), tmp_path / "cache", lambda n_bytes: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_signal_while_reading_is_heard(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 1_000_000)

    def stop(n_bytes: int) -> None:
        raise LlmkitError("stop")

    with pytest.raises(LlmkitError, match="stop"):
        corpus.spool(
            sources.find([str(tmp_path / "a.txt")], "data.train_files"),
            DataConfig(),
            tmp_path,
            stop,
        )
