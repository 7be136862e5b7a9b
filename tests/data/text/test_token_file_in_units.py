"""A large text is read and tokenized in units; whoever makes them, it is the same token file."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from llmkit.config.load import load_config
from llmkit.data.readers import ranges
from llmkit.data.readers.files import Sources
from llmkit.data.text.prepare import Prepared, prepare_domains
from llmkit.errors import DataError
from llmkit.models import tokenizer as tokenizers
from llmkit.progress import Watch
from llmkit.storage.units import ALONE, Workers

WORDS = "the quick brown fox jumps over a lazy dog, and none of them stops. 你好嗎。 été".split()


def sentences(n: int, seed: int) -> list[str]:
    drawn = np.random.default_rng(seed)
    return [" ".join(drawn.choice(WORDS, drawn.integers(1, 30))) for _ in range(n)]


def written(directory: Path, form: str) -> list[str]:
    """Files of about 40 KB in a form, and the settings that read them."""
    directory.mkdir(exist_ok=True)
    texts = sentences(400, 0)
    rows = [json.dumps({"n": number, "text": text}) for number, text in enumerate(texts)]
    content, settings = {
        "one document": (" ".join(texts), []),
        "lines": ("\n".join(["", *texts, " "]), ["data.document=line"]),
        "blank lines": ("\n \n".join(texts) + "\n\n\n", ["data.document=blank_line"]),
        "separator": ("\n--\n".join(texts), [r'data.document_separator="\n--\n"']),
        "jsonl": ("\n".join(rows), ["data.text_column=text"]),
    }[form]
    suffix = "jsonl" if form == "jsonl" else "txt"
    for name in ("a", "b"):
        (directory / f"{name}.{suffix}").write_text(content + ("\n" if name == "a" else ""))
    return settings


WORKERS = (ALONE, Workers(processes=2), Workers(1, 3), Workers(0, 2), Workers(processes=4))
FORMS = ("one document", "lines", "blank lines", "separator", "jsonl")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tokenizers.train_bpe(sentences(50, 1), 400, "qwen3")


@pytest.fixture
def prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Watch
) -> Callable[..., Prepared]:
    """Prepares text in units of some bytes, in a cache that holds nothing."""
    caches = iter(range(100))

    def prepare(
        settings: list[str],
        tokenizer: PreTrainedTokenizerFast | None,
        size: int,
        workers: Workers = ALONE,
    ) -> Prepared:
        monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / f"cache-{next(caches)}"))
        monkeypatch.setattr(ranges, "RANGE_BYTES", size)
        config = load_config("pretrain", None, settings).config
        how = (watch, lambda text: None, None, workers)
        return prepare_domains(config, Sources(config), tokenizer, *how)[""]

    return prepare


def assert_same(one: Prepared, other: Prepared) -> None:
    for a, b in ((one.train, other.train), (one.validation, other.validation)):
        assert a is not None
        assert b is not None
        assert a.fingerprint == b.fingerprint
        assert np.array_equal(a.ids[:], b.ids[:])
        assert np.array_equal(a.starts, b.starts)
        assert np.array_equal(a.document_bytes, b.document_bytes)
        assert (a.characters, a.text_hash, a.by_source) == (b.characters, b.text_hash, b.by_source)


@pytest.mark.parametrize(("form", "workers"), list(zip(FORMS, WORKERS, strict=True)))
def test_a_text_in_units_is_the_text_in_one_file(
    tmp_path: Path,
    prepared: Callable[..., Prepared],
    tokenizer: PreTrainedTokenizerFast,
    form: str,
    workers: Workers,
) -> None:
    settings = [f"data.train_files={tmp_path / 'text'}", *written(tmp_path / "text", form)]
    one = prepared(settings, tokenizer, 1 << 25)
    many = prepared(settings, tokenizer, 8000, workers)
    assert many.train.path is not None
    assert len(list(many.train.path.glob("ids-*"))) > 5
    assert_same(one, many)


def test_a_text_that_changes_while_it_is_prepared_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"data.train_files={tmp_path / 'text'}", *written(tmp_path / "text", "lines")]
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ranges, "RANGE_BYTES", 8000)
    config = load_config("pretrain", None, settings).config

    @contextmanager
    def changing(label: str, total: int) -> Iterator[Callable[[int], None]]:
        if label == "reading":
            with (tmp_path / "text" / "b.txt").open("a") as file:
                file.write("one more line\n")
        yield lambda amount: None

    how = (changing, lambda text: None, None, Workers(processes=2))
    with pytest.raises(DataError, match="changed while it was being read"):
        prepare_domains(config, Sources(config), tokenizer, *how)
    assert list((tmp_path / "cache").glob("tokens-*")) == []


def test_an_invalid_byte_is_named_by_its_line_in_the_file(
    tmp_path: Path, prepared: Callable[..., Prepared], tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = [f"data.train_files={tmp_path / 'text'}", *written(tmp_path / "text", "lines")]
    path = tmp_path / "text" / "a.txt"
    path.write_bytes(path.read_bytes() + b"\xff\n")
    with pytest.raises(DataError) as caught:
        prepared(settings, tokenizer, 8000, Workers(processes=2))
    assert caught.value.where == f"{path}:403"
