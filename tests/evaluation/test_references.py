"""Texts against references: other tools' figures, and properties of our own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from llmkit.config.load import load_config
from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.data.records.pairs import Pairs, read_pairs
from llmkit.errors import ConfigError, DataError
from llmkit.evaluation import references

ENGLISH = (
    ["The cat sat on the mat.", "It's raining, isn't it?", "nothing alike", "same text"],
    ["The cat is on the mat.", "It was raining, wasn't it?", "other words here", "same text"],
)
CHINESE = (
    ["今天天气很好,我们去公园。", "他喜欢喝茶。"],
    ["今天天气不错,我们去了公园。", "她喜欢喝咖啡。"],
)
JAPANESE = (["今日はとてもいい天気です。"], ["今日はいい天気ですね。"])


@pytest.mark.parametrize(
    ("texts", "tokenizer"), [(ENGLISH, "13a"), (CHINESE, "zh"), (JAPANESE, "char")]
)
def test_bleu_and_chrf_are_those_of_sacrebleus_command_line(texts, tokenizer, tmp_path) -> None:
    said, wanted = texts
    (tmp_path / "said").write_text("\n".join(said) + "\n", encoding="utf-8")
    (tmp_path / "wanted").write_text("\n".join(wanted) + "\n", encoding="utf-8")
    files = [str(tmp_path / "wanted"), "-i", str(tmp_path / "said")]
    options = ["-m", "bleu", "chrf", "-tok", tokenizer, "-w", "10"]
    command = [sys.executable, "-m", "sacrebleu", *files, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    bleu, chrf = json.loads(done.stdout)
    found = references.score_texts(said, wanted, 0)
    assert found["bleu"] == pytest.approx(bleu["score"], abs=1e-8)
    assert found["chrf"] == pytest.approx(chrf["score"], abs=1e-8)
    assert f"tok:{tokenizer}|" in found["bleu_signature"]
    assert found["bleu_signature"] == bleu["signature"]


@given(st.lists(st.text(st.characters(codec="ascii"), max_size=40), min_size=1, max_size=3))
def test_on_ascii_rouge_is_that_of_rouge_score_itself(texts) -> None:
    wanted = list(reversed(texts))
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    found = references.by_row(list(zip(texts, wanted, strict=True)))
    for row, (one, other) in enumerate(zip(texts, wanted, strict=True)):
        for name, score in scorer.score(other, one).items():
            assert found[name][row] == pytest.approx(score.fmeasure)


def test_rouge_of_chinese_is_not_zero() -> None:
    assert RougeScorer(["rouge1"]).score(CHINESE[1][0], CHINESE[0][0])["rouge1"].fmeasure == 0
    assert references.score_texts(*CHINESE, 0)["rouge1"] > 0.5


@given(st.text(max_size=60))
def test_a_text_is_like_itself(text) -> None:
    assert references.token_f1(text, text) == 1
    found = references.by_row([(text, text)])
    assert found["exact_match"] == [1.0]
    assert found["rougeL"] == [1.0] or not references.words(text)


@given(st.text(max_size=60), st.text(max_size=60))
def test_token_f1_is_symmetric_and_a_share(one, other) -> None:
    found = references.token_f1(one, other)
    assert found == references.token_f1(other, one)
    assert 0 <= found <= 1


def test_token_f1_by_hand() -> None:
    assert references.token_f1("the cat sat", "the dog sat down") == pytest.approx(4 / 7)
    assert references.token_f1("", "word") == 0


def test_distinct_and_repetition_by_hand() -> None:
    assert references.distinct(["a b a", "b"]) == {
        "distinct_1": 2 / 4, "distinct_2": 1.0, "distinct_3": 1.0,
    }  # fmt: skip
    assert references.repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert references.repetition("a b c") == 0


def config(path, **columns):
    keys = [f"evaluation.{name}_column={column}" for name, column in columns.items()]
    return load_config("evaluate", None, [f"data.test_files={path}", *keys]).config


def read(config: Config) -> Pairs:
    return read_pairs(Sources(config).of("data.test_files"), config)


def test_pairs_are_read_in_order_with_their_places(tmp_path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('question,answer,wanted\nWhy?,"a,\nb",c\nHow?,,d\n')
    found = read(config(path, prompt="question", prediction="answer", reference="wanted"))
    assert found.prompts == ["Why?", "How?"]
    assert found.predictions == ["a,\nb", ""]
    assert found.references == ["c", "d"]
    assert found.places == [(str(path), 1), (str(path), 2)]


def test_rows_without_a_reference_are_named(tmp_path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"p": "x", "r": "y"}\n{"p": "x", "r": " "}\n')
    with pytest.raises(DataError, match="reference of data row 2 is empty"):
        read(config(path, prediction="p", reference="r"))


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"p": "x", "r": "y"}\n')
    with pytest.raises(DataError, match="'q'") as fault:
        read(config(path, prediction="q", reference="r"))
    assert "evaluation.prediction_column" in fault.value.where
    assert "'p'" in fault.value.next


def test_a_reference_alone_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="nothing to compare the references with"):
        read_pairs([], config(tmp_path / "any", reference="r"))


@pytest.mark.parametrize(
    "words",
    [
        ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u092d\u093e\u0937\u093e"],  # Hindi
        ["\u0643\u064e\u062a\u064e\u0628\u064e"],  # Arabic with vowels
        ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"],  # Persian with a joiner
        ["cafe\u0301", "na\u00efve", "2"],
        [],
    ],
)
def test_a_word_keeps_its_vowel_signs_and_accents(words: list[str]) -> None:
    assert references.words(" ".join(words)) == words
    assert references.words(f"_{', '.join(words)}. \u200d \u0301") == words


def test_a_character_without_spaces_around_it_is_a_word() -> None:
    assert references.words("\u4f60\u597d world_2") == ["\u4f60", "\u597d", "world", "2"]
