"""Tags of words: those of plain transformers, whatever else is in the batch."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from llmkit.data.examples.tagged import NO_WORD
from llmkit.data.records.tagging.tagged import TaggedRow
from llmkit.data.records.tagging.tags import BIO, PLAIN_TAGS, TagSet
from llmkit.data.records.tagging.words import MarkedWords, split_words
from llmkit.errors import DataError
from llmkit.inference.labels import tag
from llmkit.inference.labels.tag import Tagger
from llmkit.models import build, classifier
from llmkit.models import tokenizer as tokenizers
from llmkit.models.classifier import ClassifierHead
from llmkit.models.pretrained import open_model
from tests.jobs import WORDS

NAMES = ("O", "B-X", "I-X", "B-Y", "I-Y")
LENGTH = 24


def made(path: Path, architecture: str = "bert", names=NAMES, **facts) -> Path:
    """A tagger with random weights that are large enough for unlike tags."""
    tokenizer = tokenizers.train_bpe_with_frame([" ".join(WORDS)] * 3, 300)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = classifier.new_config(architecture, shape, tokenizer, LENGTH, build.TAGGER_MODEL)
    ClassifierHead("", tuple(names)).describe(config, tokenizer.pad_token_id)
    classifier.remember_columns(config, (), (), facts)
    model = build.new_model(config, 0, build.TAGGER_MODEL)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    model.save_pretrained(path)
    tokenizer.model_max_length = LENGTH
    tokenizers.read_as_text(tokenizer)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("tagger"))


def opened(place: Path, precision: str = "fp32") -> Tagger:
    return tag.open_tagger(open_model(str(place)), torch.device("cpu"), precision)


def row(number: int, text: str, mark: MarkedWords | None = None) -> TaggedRow:
    return TaggedRow(number, "a.txt", f"a.txt:{number}", text, split_words(text), None, mark,
                     named={"text": text}, order=("text",))  # fmt: skip


def rows(n: int, seed: int = 0) -> list[TaggedRow]:
    chance = random.Random(seed)
    return [row(k, " ".join(chance.choices(WORDS, k=chance.randint(1, 40)))) for k in range(n)]


def test_a_text_that_fits_has_the_tags_of_plain_transformers(place: Path) -> None:
    model = AutoModelForTokenClassification.from_pretrained(place).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    for each in (row for row in rows(20) if len(row.words) < 6):
        encoding = tokenizer(each.text, return_tensors="pt", return_offsets_mapping=True)
        offsets = encoding.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            chances = model(**encoding).logits[0].softmax(1)
        firsts = [next(n for n, (a, b) in enumerate(offsets) if b > start)
                  for start in each.words[:, 0]]  # fmt: skip
        [[found]] = tag.tag_rows(opened(place), [[each]], ["*"])
        expected = chances[firsts]
        assert found.probability == pytest.approx(float(expected.max(1).values.min()), abs=1e-5)
        starts = {each.words[n, 0] for n, k in enumerate(expected.argmax(1).tolist())
                  if NAMES[k].startswith("B")}  # fmt: skip
        assert starts <= {span["start"] for span in found.spans}
        for span in found.spans:
            assert span["text"] == each.text[span["start"] : span["end"]]
            inside = [n for n, (a, b) in enumerate(each.words) if span["start"] <= a < span["end"]]
            product = float(expected[inside].max(1).values.prod())
            assert span["probability"] == pytest.approx(product, abs=1e-5)


def test_a_row_has_the_same_tags_alone_and_in_any_company(place: Path) -> None:
    tagger, some = opened(place), rows(30)
    alone = [next(tag.tag_rows(tagger, [[each]], ["*"]))[0] for each in some]
    [together] = tag.tag_rows(tagger, [some], ["*"])
    assert together == alone
    [backwards] = tag.tag_rows(tagger, [some[::-1]], ["*"])
    assert backwards == alone[::-1]


def test_long_texts_are_read_in_windows_and_every_word_gets_a_tag(place: Path) -> None:
    tagger = opened(place)
    text = " ".join(random.Random(1).choices(WORDS, k=200))
    words = split_words(text)
    encoded = tagger.encoder.encode([(text,)], [words])
    assert len(encoded) > 5
    assert encoded.sources.tolist() == list(range(len(words)))
    found = tagger.tag_windows(encoded)
    assert len(found.tags) == len(words)
    assert (found.logits.any(1)).all()
    # Each word has the logits of its window alone.
    for window in (0, 3, len(encoded) - 1):
        batch = encoded.batch([window])
        places = batch.pop("words")[0]
        with torch.no_grad():
            logits = tagger.model(**batch).logits[0]
        own = places != NO_WORD
        np.testing.assert_allclose(found.logits[places[own]], logits[own], atol=1e-5)


def test_offsets_are_those_of_the_text_without_marks(place: Path) -> None:
    plain = row(1, "the cat sat on a mat and saw the dog")
    marked = plain._replace(mark=MarkedWords(2, 3))
    [[one, other]] = tag.tag_rows(opened(place), [[plain, marked]], ["*"])
    assert one.probability != other.probability  # the mark was read
    for found in (one, other):
        assert all(s["text"] == plain.text[s["start"] : s["end"]] for s in found.spans)


def test_a_causal_model_predicts_from_the_last_token_of_a_word(tmp_path: Path) -> None:
    place = made(tmp_path, "llama", by_last_token=True)
    encoder = opened(place).encoder
    assert encoder.by_last
    text = "zzz far"  # not a word of the vocabulary: several tokens
    encoded = encoder.encode([(text,)], [split_words(text)])
    words = encoded.batch([0])["words"][0]
    first = int((words == 0).nonzero()[0, 0])
    assert first > 1
    assert classifier.sees_only_before(open_model(str(place)).config)
    assert not classifier.sees_only_before(open_model(str(made(tmp_path / "b"))).config)


def test_the_tags_and_the_scheme_are_those_of_the_config(tmp_path: Path) -> None:
    config = open_model(str(made(tmp_path / "a"))).config
    assert tag.tag_set_of(config) == TagSet(BIO, NAMES)
    config = open_model(str(made(tmp_path / "b", tag_scheme="plain"))).config
    assert tag.tag_set_of(config).scheme == PLAIN_TAGS
    [[found]] = tag.tag_rows(opened(tmp_path / "b"), [[row(1, "the cat sat")]], ["*"])
    assert [span["text"] for span in found.spans] == ["the", "cat", "sat"]


def test_outputs_that_are_not_finite_have_no_prediction(place: Path) -> None:
    tagger = opened(place)
    with torch.no_grad():
        tagger.model.classifier.bias.fill_(float("nan"))
    [[found]] = tag.tag_rows(tagger, [[row(1, "the cat")]], ["*"])
    assert (found.spans, found.probability) == (None, None)


def test_a_text_without_words_has_no_spans(place: Path) -> None:
    [[found]] = tag.tag_rows(opened(place), [[row(1, " ")]], ["*"])
    assert (found.spans, found.probability) == ([], 1.0)


def test_a_row_without_a_clear_mark_is_refused(place: Path) -> None:
    bad = row(7, "the cat").refused("bad_marks", "0 words are marked")
    with pytest.raises(DataError, match="data row 7: 0 words are marked"):
        list(tag.tag_rows(opened(place), [[bad]], ["*"]))


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizers.train_bpe_with_frame([" ".join(WORDS)] * 3, 300)
    config = classifier.new_config("bert", {"hidden_size": 32}, tokenizer, LENGTH)
    build.classifier(config, 0).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="BertForSequenceClassification, not a tagger"):
        tag.check_tagger(open_model(str(tmp_path)))
