"""The domains that are found in a text: named, counted, held out apart, and the same everywhere."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.data.text import clustering, division, spooling
from llmkit.data.text.clusters import Clusters
from llmkit.data.text.found_domains import (
    FoundDomains,
    domain_lines,
    known_clusters,
    outline_domains,
)
from llmkit.data.text.prepare import Prepared, prepare_domains
from llmkit.errors import ConfigError, DataError
from llmkit.progress import Watch
from tests.jobs import calls_of

TOPICS = ("def return self import", "wave wind sail ship", "床前 明月 光疑 是地")


def lines() -> list[str]:
    draw = random.Random(0)
    made = [" ".join(draw.choices(topic.split(), k=draw.randint(8, 40)))
            for topic in TOPICS for _ in range(60)]  # fmt: skip
    draw.shuffle(made)
    return made


def config(**data: Any) -> Config:
    settings = {"document": "line", "domains": "auto", "num_domains": 3, **data}
    return Config.model_validate({"data": settings})


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One file of three topics; and a cache of its own."""
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines()), encoding="utf-8")
    return path


def found_in(
    asked: Config, watch: Watch, known: Clusters | None = None
) -> tuple[FoundDomains, dict[str, Prepared]]:
    sources = Sources(asked)
    found = FoundDomains(asked, sources, known, watch, print)
    return found, prepare_domains(asked, sources, None, watch, print, found)


def documents(prepared: Prepared) -> Iterator[str]:
    for part in (prepared.train, prepared.validation):
        if part is not None:
            whole = prepared.tokenizer.decode(part.ids)
            yield from filter(None, whole.split("<|endoftext|>"))


def test_every_document_is_in_one_domain_with_its_kind(text: Path, watch: Watch) -> None:
    found, data = found_in(config(train_files=str(text)), watch)
    assert list(data) == list(found.report) == ["domain-0", "domain-1", "domain-2"]
    everything = []
    for name, prepared in data.items():
        own = list(documents(prepared))
        everything += own
        facts = found.report[name]
        assert facts["documents"] == len(own) == 60
        assert facts["bytes"] == sum(len(each.encode()) for each in own)
        topic = next(topic for topic in TOPICS if own[0].split()[0] in topic)
        assert {word for each in own for word in each.split()} <= set(topic.split())
        assert set(facts["words"].split(", ")) <= set(topic.split())
        assert facts["example"].removesuffix("…") in "\n".join(own)
        assert prepared.validation is not None
        assert 1 <= len(prepared.validation.starts) <= 12
    assert sorted(everything) == sorted(lines())


def test_the_lines_fit_a_terminal_and_add_up(text: Path, watch: Watch) -> None:
    found, _ = found_in(config(train_files=str(text)), watch)
    shown = list(domain_lines(found.report))
    assert len(shown) == 6
    assert all(cell_len(line) <= 80 for line in shown)
    report = {name: {**each, "words": "encyclopaedia, " * 9} for name, each in found.report.items()}
    assert all(cell_len(line) <= 80 for line in domain_lines(report))
    assert [line.split()[0] for line in shown[::2]] == list(found.report)


def test_a_second_run_reads_nothing_again(text: Path, watch: Watch) -> None:
    reads = (spooling.spool, clustering.fit_clusters, division.divide, division.assign)
    with calls_of(*reads) as calls:
        one, first = found_in(config(train_files=str(text)), watch)
        assert len(calls) == 4
        two, second = found_in(config(train_files=str(text)), watch)
    assert len(calls) == 4
    assert one.report == two.report
    assert [p.train.fingerprint for p in first.values()] == [
        p.train.fingerprint for p in second.values()
    ]


def test_how_the_documents_are_read_changes_nothing(
    text: Path, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine, without the cache, has them in several compressed files."""
    here, one = found_in(config(train_files=str(text)), watch)
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "other"))
    (tmp_path / "parts").mkdir()
    for number in range(4):
        with gzip.open(tmp_path / "parts" / f"{number}.txt.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines()[number * 45 : (number + 1) * 45]))
    asked = config(train_files=str(tmp_path / "parts"), validation_fraction=0)
    there, two = found_in(asked, watch)
    assert there.clusters.fingerprint == here.clusters.fingerprint
    for name, each in one.items():
        assert sorted(documents(each)) == sorted(documents(two[name]))


def test_known_domains_are_kept_for_other_text(text: Path, tmp_path: Path, watch: Watch) -> None:
    """A domain without a document is omitted, or missed where it has a weight."""
    known, _ = found_in(config(train_files=str(text)), watch)
    own = [line for line in lines() if line.split()[0] in TOPICS[0]]
    other = tmp_path / "other.txt"
    other.write_text("\n".join(own), encoding="utf-8")
    name = next(name for name, each in known.report.items() if "return" in each["words"])
    asked = config(train_files=str(other), expert=name)
    found, data = found_in(asked, watch, known.clusters)
    assert list(data) == [name]
    assert sorted(documents(data[name])) == sorted(own)
    assert [each["documents"] for each in found.report.values()].count(0) == 2
    with pytest.raises(DataError, match="too little text for domain-"):
        found_in(config(train_files=str(other)), watch, known.clusters)


def test_beside_an_expert_nothing_else_is_used_if_nothing_is_held_out(
    text: Path, watch: Watch
) -> None:
    asked = config(train_files=str(text), expert="domain-1", validation_fraction=0)
    _, data = found_in(asked, watch)
    assert list(data) == ["domain-1"]
    assert data["domain-1"].validation is None


def test_held_out_files_are_divided_too(text: Path, tmp_path: Path, watch: Watch) -> None:
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("\n".join(lines()[:40]), encoding="utf-8")
    asked = config(train_files=str(text), validation_files=str(held_out))
    _, data = found_in(asked, watch)
    kept = [n for each in data.values() if each.validation for n in [len(each.validation.starts)]]
    assert sum(kept) == 40
    assert len(kept) == 3


def test_a_dry_run_finds_the_same_and_writes_nothing(
    text: Path, tmp_path: Path, watch: Watch
) -> None:
    asked = config(train_files=str(text))
    outlined = outline_domains(asked, Sources(asked), None, watch)
    assert not (tmp_path / "cache").exists()
    found, _ = found_in(asked, watch)
    assert outlined == found.report


@pytest.mark.parametrize(
    ("content", "data", "said", "advice"),
    [
        ("a b\n" * 2000, {"document": "file"}, "1 document cannot be divided into 3",
         "data.document=blank_line"),
        ("a b\n</s>\n" * 9, {"document": "file"}, "1 document cannot",
         'data.document_separator="\\n</s>\\n"'),
        ("a b\nc d\n", {}, "2 documents cannot", "lower data.num_domains to 2"),
        ("a b\n", {}, "1 document cannot", "add text"),
        ("a\nb\nc\nd\n", {"num_domains": 5}, "4 documents cannot", "lower data.num_domains to 4"),
        ("the same\n" * 50, {}, "too much alike", "lower data.num_domains"),
    ],
)  # fmt: skip
def test_text_that_cannot_be_divided_is_explained(
    text: Path, watch: Watch, content: str, data: dict[str, Any], said: str, advice: str
) -> None:
    text.write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        found_in(config(train_files=str(text), **data), watch)
    assert advice in caught.value.next
    assert str(text) in caught.value.where


def test_domains_of_another_number_or_of_two_kinds_are_refused(
    text: Path, tmp_path: Path, watch: Watch
) -> None:
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        place.mkdir()
        found_in(config(train_files=str(text)), watch)[0].clusters.write(place)
        text.write_text(text.read_text() + "\nmore words of another kind" * 9)
    assert known_clusters(config(), places[:1])
    assert known_clusters(config(), [*places[:1], tmp_path, *places[:1]])
    assert known_clusters(Config(), places) is None
    with pytest.raises(ConfigError, match="has 3 domains, not 2") as caught:
        known_clusters(config(num_domains=2), places[:1])
    assert "num_domains=3" in caught.value.next
    with pytest.raises(ConfigError, match="were trained on different domains"):
        known_clusters(config(), places)
