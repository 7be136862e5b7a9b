from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from llmkit.data.text import fingerprints
from llmkit.data.text.fingerprints import (
    Fingerprints,
    of_rows,
    of_tokens,
    overlap,
    seen_documents,
    seen_rows,
)
from llmkit.data.text.token_file import TokenFile


def stream(*documents: np.ndarray, shared: bool = True) -> TokenFile:
    opening, closing = 0, 0 if shared else 1
    ids, starts = [opening], [0]
    for number, document in enumerate(documents):
        if number:
            starts.append(len(ids) - 1 if shared else len(ids))
            ids += [] if shared else [opening]
        ids += [*document.tolist(), closing]
    return TokenFile(np.array(ids, np.uint16), np.array(starts), np.zeros(len(starts), np.int64),
                     0, opening, closing, 0, 0, 0, 0.0, "")  # fmt: skip


def drawn(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, 500, length)


@pytest.mark.parametrize("shared", [True, False])
def test_a_document_is_known_wherever_it_stands_in_a_stream(shared: bool) -> None:
    known = of_tokens([stream(*(drawn(i, 20 + i) for i in range(50)), shared=shared)]).kept()
    part = of_tokens([stream(drawn(99, 30), drawn(7, 27), drawn(3, 23), shared=shared)])
    found = overlap(part, known)
    assert (found.matched, found.compared, found.total) == (2, 3, 3)
    assert "2 of these 3 documents (67%)" in found.sentence("document")


def test_a_part_of_a_long_document_is_known_by_its_segments() -> None:
    book = drawn(0, 20_000)
    known = of_tokens([stream(book)]).kept()
    part = of_tokens([stream(np.concatenate([drawn(1, 5000), book[3001:8001]]))])
    found = overlap(part, known)
    assert found.matched == 0
    assert found.segments == pytest.approx(0.5, abs=0.05)
    assert not overlap(of_tokens([stream(drawn(2, 20_000))]), known).is_notable


def test_chunks_change_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stream(drawn(0, 3000), drawn(1, 10), drawn(2, 700))
    whole = of_tokens([made])
    monkeypatch.setattr(fingerprints, "_CHUNK", 97)
    parts = of_tokens([made])
    assert whole.documents.tolist() == parts.documents.tolist()
    assert sorted(whole.segments.tolist()) == sorted(parts.segments.tolist())


def test_what_is_kept_is_bounded_and_still_tells_the_share(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(fingerprints, "MOST", 500)
    rows = [(f"row number {i}",) for i in range(20_000)]
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "final").mkdir()
    fingerprints.write(tmp_path, of_rows(rows, None))
    known = fingerprints.read_fingerprints(str(tmp_path / "final"))
    assert known is not None
    assert len(known.documents) <= 500
    found = overlap(of_rows([*rows[:5000], *((f"new {i}",) for i in range(5000))], None), known)
    assert found.matched / found.compared == pytest.approx(0.5, abs=0.1)
    assert found.sentence("row").startswith("about ")


def test_damaged_fingerprints_are_as_none(tmp_path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / fingerprints.FINGERPRINTS).write_bytes(b"no safetensors")
    assert fingerprints.read_fingerprints(str(tmp_path)) is None
    assert fingerprints.read_fingerprints(str(tmp_path / "nowhere")) is None


def test_a_continued_run_knows_the_rows_of_the_run_before_it() -> None:
    one, two = of_rows([("a",)], None), of_rows([("b",)], None)
    assert overlap(of_rows([("a",), ("b",)], None), two.joined(one)).matched == 2
    text = Fingerprints("text", one.documents, one.segments)
    assert replace(two.joined(text), kind="rows") == two


def test_a_document_that_shares_a_segment_is_not_unseen() -> None:
    one, two, other = drawn(1, 2000), drawn(2, 40), drawn(3, 2000)
    known = of_tokens([stream(one, two)]).kept()
    longer = np.concatenate([drawn(4, 300), one[500:1500]])
    measured = stream(other, two, longer, drawn(5, 30))
    seen = seen_documents(measured, known)
    assert seen is not None
    assert seen.tolist() == [False, True, True, False]


def test_what_is_known_as_a_sample_tells_nothing_of_a_single_row() -> None:
    part = of_rows([("a",), ("b",)], None)
    known = of_rows([("b",)], None)
    assert seen_rows(part, known) == pytest.approx([False, True])
    assert seen_rows(part, replace(known, every_document=2)) is None
    text = of_tokens([stream(drawn(1, 50))])
    assert seen_documents(stream(drawn(1, 50)), replace(text, every_document=2)) is None
    assert seen_documents(stream(drawn(1, 50)), replace(text, every_segment=32)) is None


def test_a_book_of_more_segments_than_are_kept_tells_nothing_of_a_chapter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fingerprints, "MOST", 500)
    book = drawn(0, 40_000)
    known = of_tokens([stream(book)]).kept()
    chapter = stream(book[5000:5100], drawn(1, 100))
    assert len(known.segments) <= 500
    assert seen_documents(chapter, known) is None
    assert seen_documents(chapter, of_tokens([stream(book[:6000])]).kept()) is not None


def test_repeated_text_does_not_crowd_out_other_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "MOST", 500)
    monkeypatch.setattr(fingerprints, "_CHUNK", 1000)
    book = drawn(0, 4000)
    known = of_tokens([stream(*[book] * 40)])
    assert known.every_segment == of_tokens([stream(book)]).every_segment
    assert set(known.segments) == set(of_tokens([stream(book)]).segments)


def test_progress_of_hashing_reaches_its_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_CHUNK", 97)
    done: list[int] = []

    @contextmanager
    def watch(label: str, total: int) -> Iterator[Callable[[int], None]]:
        yield done.append
        assert sum(done) == total

    fingerprints.of_training_text([stream(drawn(0, 1000)), stream(drawn(1, 10))], watch)
    assert max(done) == 97
