"""A corpus that is divided into domains: each document whole, once, and in its order."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.schema import DataConfig
from llmkit.data.readers import files
from llmkit.data.text import division, spooling
from llmkit.data.text.corpus import everything
from llmkit.data.text.spooled import Corpus
from llmkit.progress import Watch

SEA, CODE = "wave wind sail ship", "def return self import"


def spooled(*contents: str) -> Corpus:
    """Files of one document a line."""
    with tempfile.TemporaryDirectory() as directory:
        for number, content in enumerate(contents):
            Path(directory, f"{number:04}.txt").write_text(content, encoding="utf-8")
        found = files.find([directory], "data.train_files")
        data = DataConfig.model_validate({"document": "line"})
        return spooling.spool(found, data, Path(directory), lambda n_bytes: None)


@contextmanager
def silent(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda amount: None


def texts(read: Corpus) -> list[str]:
    whole, text = [], ""
    for piece in everything(read).pieces():
        text += piece.text
        if piece.last:
            whole.append(text)
            text = ""
    return whole


@given(st.lists(st.lists(st.sampled_from("aé你🙂"), min_size=1, max_size=6), min_size=1),
       st.integers(1, 4), st.data())  # fmt: skip
def test_every_document_is_in_its_domain_in_order(contents, n_domains, data) -> None:
    with tempfile.TemporaryDirectory() as place:
        read = spooled(*("\n".join(lines) + "\n\n" for lines in contents))
        count = read.n_documents
        of_domains = st.integers(0, n_domains - 1)
        numbers = data.draw(st.lists(of_domains, min_size=count, max_size=count))
        own = np.array(numbers, np.uint16)
        parts = division.divide(read, own, n_domains, Path(place), silent)
    whole = texts(read)
    for number, part in enumerate(parts):
        assert texts(part) == [t for t, n in zip(whole, numbers, strict=True) if n == number]
        assert len(part.ranges) == len(read.ranges)
        for (first, last), (begin, end) in zip(read.ranges, part.ranges, strict=True):
            assert numbers[first:last].count(number) == end - begin
    assert sum(part.blank for part in parts) == read.blank
    assert sum(part.n_bytes for part in parts) == read.n_bytes


def test_what_is_in_each_domain_is_counted_with_a_typical_example(watch: Watch) -> None:
    lines = [f"{SEA} {n}" for n in range(20)] + [f"{CODE} {n}" for n in range(30)]
    read = spooled("\n".join([*lines, f"{SEA} {SEA} {SEA} {SEA}, and the water {'of ' * 40}"]))
    made = division.find_clusters(read, 2, 0, watch)
    assert made is not None
    found = division.assign(read, made, watch)
    by_domain = [[t for t, n in zip(texts(read), found.numbers, strict=True) if n == number]
                 for number in range(2)]  # fmt: skip
    for facts, own in zip(found.found, by_domain, strict=True):
        assert facts["documents"] == len(own)
        assert facts["bytes"] == sum(len(text) for text in own)
        assert any(text.startswith(facts["example"].removesuffix("…")) for text in own)
    assert {len(own) for own in by_domain} == {21, 30}
    # A document of a hundred bytes or more is the better example.
    assert any(facts["example"].endswith("…") for facts in found.found)


def test_of_many_documents_a_sample_is_read_and_all_are_assigned(watch: Watch) -> None:
    lines = [f"{(SEA, CODE)[n % 3 == 0]} {n % 7}" for n in range(division.SAMPLE + 3000)]
    read = spooled("\n".join(lines))
    made = division.find_clusters(read, 2, 0, watch)
    assert made is not None
    numbers = division.assign(read, made, watch).numbers
    assert len(numbers) == len(lines)
    sea = int(numbers[1])
    assert all((n != sea) == (number % 3 == 0) for number, n in enumerate(numbers.tolist()))
    divided = spooled("\n".join(lines[:5000]), "\n".join(lines[5000:]))
    other = division.find_clusters(divided, 2, 0, watch)
    assert other is not None
    assert other.fingerprint == made.fingerprint


def test_a_long_document_is_judged_by_all_of_it(watch: Watch) -> None:
    lines = [f"{SEA} {n}" for n in range(30)] + [f"{CODE} {n}" for n in range(30)]
    long = "wave " * 1000 + "self import " * 9000
    made = division.find_clusters(spooled("\n".join(lines)), 2, 0, watch)
    assert made is not None
    numbers = division.assign(spooled("\n".join([*lines, long])), made, watch).numbers
    assert numbers[-1] == numbers[30] != numbers[0]


def test_too_few_documents_have_no_clusters(watch: Watch) -> None:
    assert division.find_clusters(spooled("a b c\nd e f"), 3, 0, watch) is None


def test_novels_poems_and_code_are_distinguished(shared: Path, watch: Watch) -> None:
    """97.8% of the bytes of these texts are with their kind; the rest is prose within code."""
    texts = shared / "text"
    code = "\n\n".join(p.read_text(encoding="utf-8") for p in sorted(texts.glob("code/*/*.py")))
    novels = (texts / "novels.txt").read_text(encoding="utf-8")[:2_000_000]
    poems = (texts / "tang_poems.txt").read_text(encoding="utf-8")[:70_000]
    kinds = [novels.split("\n")[::12], poems.split("\n\n"), re.split(r"\n\s*\n", code)]
    documents = [(" ".join(text.split()), n) for n, some in enumerate(kinds) for text in some]
    documents = [(text, n) for text, n in documents if text]
    read = spooled("\n".join(text for text, _ in documents))
    made = division.find_clusters(read, 3, 0, watch)
    assert made is not None
    table = np.zeros((3, 3))
    sizes = np.diff(read.ends, prepend=0)
    numbers = division.assign(read, made, watch).numbers
    np.add.at(table, (numbers, [n for _, n in documents]), sizes)
    assert sorted(table.argmax(axis=1).tolist()) == [0, 1, 2]
    assert table.max(axis=1).sum() / table.sum() > 0.95
