"""Tagged words in windows: every word is predicted once, by a token of its own, near the middle."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmkit.data.examples.encoded import UNLABELLED
from llmkit.data.examples.tagged import (
    NO_WORD,
    TaggedTable,
    TokenWindows,
    WindowEncoder,
    align_words,
    window_starts,
)
from llmkit.data.records.tagging import tags
from llmkit.data.records.tagging.tags import BIO, PLAIN_TAGS
from llmkit.data.records.tagging.words import MarkedWords, joined_words, marked_text, split_words
from llmkit.models import tokenizer as tokenizers
from tests.jobs import WORDS

SENTENCES = (
    "The quick unaffable fox can't jump over 12,345 lazy dogs!",
    "Frau Müller-Lüdenscheidt besuchte Wörgl am 3.10.2020.",
    "你好\uff0c世界 e\u0301te\u0301 naïve 🙂 x_1",
    "a\u200bb \u200b c",
    "",
)


@lru_cache
def own() -> PreTrainedTokenizerFast:
    return tokenizers.train_bpe_with_frame([" ".join(WORDS)] * 3 + list(SENTENCES), 400)


@lru_cache
def metaspace() -> PreTrainedTokenizerFast:
    """A tokenizer in SentencePiece's manner: a space becomes a part of the next token."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([*SENTENCES, " ".join(WORDS)] * 5, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="</s>",
    )  # fmt: skip


def real(shared: Path, name: str) -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def owned(windows: TokenWindows) -> list[tuple[int, int, int]]:
    """Each word with the window and the place in it that predicts it."""
    found = []
    for window in range(len(windows)):
        [words] = windows.batch([window])["words"].tolist()
        found += [(word, window, place) for place, word in enumerate(words) if word != NO_WORD]
    return sorted(found)


def check_alignment(tokenizer: PreTrainedTokenizerFast, text: str, by_last: bool) -> None:
    words = split_words(text)
    windows = WindowEncoder(tokenizer, 64, by_last).encode([(text,)], [words])
    encoding = tokenizer(text, return_offsets_mapping=True)
    offsets = encoding["offset_mapping"]
    predicted = {word for word, _, _ in owned(windows)}
    if len(windows):
        assert windows.batch([0])["input_ids"][0].tolist() == encoding["input_ids"]
    for word, _, place in owned(windows):
        start, end = words[word]
        first, last = offsets[place]
        assert text[max(start, first) : min(end, last)].strip(), (text[start:end], first, last)
        others = [
            n for n, (a, b) in enumerate(offsets)
            if a < end and start < b and text[a:b].strip() and n != place
        ]  # fmt: skip
        assert (
            all(n < place for n in others)
            if by_last
            else not any(
                n < place and offsets[n][0] >= (words[word - 1][1] if word else 0) for n in others
            )
        )
    for word, (start, end) in enumerate(words.tolist()):
        has_token = any(a < end and start < b and b > a for a, b in offsets)
        source = windows.sources[word]
        assert (source == NO_WORD) == (not has_token), text[start:end]
        if word not in predicted and has_token:
            assert source < word
            assert source in predicted


@pytest.mark.parametrize("by_last", [False, True])
@pytest.mark.parametrize("text", SENTENCES)
@pytest.mark.parametrize("made", [own, metaspace])
def test_each_word_is_predicted_by_one_of_its_tokens(made, text: str, by_last: bool) -> None:
    check_alignment(made(), text, by_last)


@pytest.mark.parametrize("by_last", [False, True])
@pytest.mark.parametrize("name", ["bert-base-uncased", "bert-base-chinese", "gpt2"])
def test_words_are_aligned_to_the_tokens_of_real_tokenizers(shared, name, by_last) -> None:
    for text in SENTENCES:
        check_alignment(real(shared, name), text, by_last)


def test_a_word_that_the_tokenizer_drops_is_outside_and_counted(shared: Path) -> None:
    text, words = joined_words(["Angela", "\u200b", "Merkel", "", "spoke"])
    encoder = WindowEncoder(real(shared, "bert-base-uncased"), 64)
    windows = encoder.encode([(text,)], [words])
    assert [word for word, _, _ in owned(windows)] == [0, 2, 4]
    assert windows.length_report()["words_without_token"] == 2
    known = tags.tag_set(BIO, {"B-PER"})
    guess = np.array([known.number(tag) for tag in "B-PER B-PER I-PER B-PER O".split()])
    names = [known.names[number] for number in windows.completed(guess, known)]
    assert names == "B-PER O I-PER O O".split()


def test_a_word_that_shares_a_token_continues_the_word_before(shared: Path) -> None:
    text = "don't"
    windows = WindowEncoder(real(shared, "gpt2"), 64).encode([(text,)], [split_words(text)])
    assert windows.sources.tolist() == [0, 1, 1]  # the token `'t` begins with the word `'`
    known = tags.tag_set(BIO, {"B-X"})
    guess = np.array([known.number(tag) for tag in ("O", "B-X", "O")])
    assert [known.names[n] for n in windows.completed(guess, known)] == ["O", "B-X", "I-X"]
    plain = tags.tag_set(PLAIN_TAGS, {"A", "B"})
    assert windows.completed(np.array([1, 0, 1]), plain).tolist() == [1, 0, 0]


def test_white_space_counted_to_a_token_changes_nothing() -> None:
    words = np.array([[0, 3], [4, 8]], np.int32)
    for offsets in ([[0, 3], [4, 8]], [[0, 3], [3, 8]], [[0, 4], [4, 8]], [[0, 3], [3, 4], [4, 8]]):
        tokens, sources = align_words(np.array(offsets), words, by_last=False)
        assert sources.tolist() == [0, 1]
        assert tokens.tolist() == [0, len(offsets) - 1]


def test_marks_are_read_but_not_predicted() -> None:
    text, words = joined_words("the cat saw the dog".split())
    marked, moved = marked_text(text, words, MarkedWords(2, 3))
    tokenizer = own()
    windows = WindowEncoder(tokenizer, 64).encode([(marked,)], [moved])
    assert [word for word, _, _ in owned(windows)] == list(range(5))
    [ids] = windows.batch([0])["input_ids"].tolist()
    assert ids == tokenizer(marked)["input_ids"]
    assert ids != tokenizer(text)["input_ids"]


@pytest.mark.parametrize("room", [1, 2, 5, 8, 30])
def test_windows_cover_the_text_and_overlap(room: int) -> None:
    for n_tokens in range(1, 60):
        starts = window_starts(n_tokens, room)
        covered = {place for start in starts for place in range(start, min(start + room, n_tokens))}
        assert covered == set(range(n_tokens))
        assert (np.diff(starts) > 0).all()
        if n_tokens <= room:
            assert starts.tolist() == [0]
        elif room > 3:
            assert (np.diff(starts) < room).all()


@pytest.mark.parametrize("max_length", [4, 7, 12, 40])
def test_long_texts_have_each_word_once_where_it_is_most_central(max_length: int) -> None:
    chance = random.Random(max_length)
    texts = [(" ".join(chance.choices(WORDS, k=n)),) for n in (1, 5, 60, 130)]
    words = [split_words(text) for (text,) in texts]
    tokenizer = own()
    windows = WindowEncoder(tokenizer, max_length).encode(texts, words)
    found = owned(windows)
    assert [word for word, _, _ in found] == list(range(sum(map(len, words))))
    assert windows.lengths.max() <= max_length
    assert windows.count(range(len(windows))) == len(found)
    assert windows.count([-1]) == 0
    opening, closing = tokenizer.cls_token_id, tokenizer.sep_token_id
    for window in range(len(windows)):
        [ids] = windows.batch([window])["input_ids"].tolist()
        assert (ids[0], ids[-1]) == (opening, closing)
    if max_length < 40:
        return
    # A word deep inside of a text has at least an eighth of a window on each side.
    ids = [tokenizer(text)["input_ids"][1:-1] for (text,) in texts]
    last = np.cumsum([len(each) for each in words])[2:]
    for word, window, place in found:
        length = int(windows.lengths[window])
        if length == max_length and last[0] + 25 < word < last[1] - 25:
            assert min(place, length - 1 - place) >= (max_length - 2) // 8, (word, len(ids[3]))


def table(rows: list[str], scheme: str = BIO) -> TaggedTable:
    """Rows of `word/TAG`."""
    parts = [[each.split("/") for each in row.split()] for row in rows]
    joined = [joined_words([word for word, _ in row]) for row in parts]
    raws = [[tag for _, tag in row] for row in parts]
    known = tags.tag_set(scheme, {tag for row in raws for tag in row})
    return TaggedTable(
        [(text,) for text, _ in joined],
        [words for _, words in joined],
        tags.flat_tags(known, raws),
        known,
        [("a", n) for n in range(1, len(rows) + 1)],
    )


ROWS = ["the/O cat/B-X sat/O", "a/O dog/B-X home/I-X run/B-Y", "little/O", "cat/B-X"]


def test_a_batch_has_the_tag_of_each_word_at_its_token() -> None:
    tagged = table(ROWS)
    windows = WindowEncoder(own(), 64).encode(tagged.texts, tagged.words, tagged.targets)
    batch = windows.batch([1, -1, 0])
    assert batch["labels"].shape == batch["input_ids"].shape == batch["words"].shape
    for row, window in enumerate([1, -1, 0]):
        words = batch["words"][row][batch["words"][row] != NO_WORD]
        labels = batch["labels"][row][batch["labels"][row] != UNLABELLED]
        expected = [] if window < 0 else range(*tagged.starts[window : window + 2])
        assert words.tolist() == list(expected)
        assert labels.tolist() == tagged.targets[words.numpy()].tolist()
    assert windows.labels([1, -1]).tolist() == tagged.targets[3:7].tolist()
    assert batch["attention_mask"][1].sum() == 1
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_a_part_of_a_table_has_the_words_of_its_rows() -> None:
    tagged = table(ROWS)
    part = tagged.part(np.array([False, True, False, True]))
    assert part.texts == [tagged.texts[1], tagged.texts[3]]
    assert part.targets.tolist() == tagged.targets[[3, 4, 5, 6, 8]].tolist()
    assert part.counts() == {"rows": 2, "words": 5, "classes": {"X": 2, "Y": 1}}
    assert part.fingerprint != tagged.fingerprint
    assert tagged.part(np.ones(4, bool)).fingerprint == tagged.fingerprint


def test_rows_are_stratified_by_their_rarest_type() -> None:
    tagged = table(ROWS)
    kinds = tagged.labels.types
    assert tagged.strata().tolist() == [kinds.index("X"), kinds.index("Y"), -1, kinds.index("X")]
    plain = table(["a/A b/B", "c/A"], PLAIN_TAGS)
    assert plain.strata().tolist() == [1, 0]
    assert plain.counts()["classes"] == {"A": 2, "B": 1}
