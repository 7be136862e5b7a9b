"""The best spans of windows: those that all pairs of tokens give, in any batch."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering

from llmkit.data.examples.answers import QuestionEncoder
from llmkit.errors import DataError
from llmkit.inference.labels import answer
from llmkit.inference.labels.answer import FIRST_TOKEN, LAST_TOKEN, NONE, SPAN, window_answers
from llmkit.models import build, classifier
from llmkit.models import tokenizer as tokenizers
from llmkit.models.pretrained import open_model
from tests.jobs import WORDS

LENGTH = 24


def made(path: Path, **facts) -> Path:
    """A model with random weights that are large enough for unlike answers."""
    tokenizer = tokenizers.train_bpe_with_frame([" ".join(WORDS)] * 3, 300)
    classifier.separate_pairs(tokenizer)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = classifier.new_config("bert", shape, tokenizer, LENGTH, build.ANSWER_MODEL)
    classifier.remember_columns(config, (), (), facts)
    model = build.new_model(config, 0, build.ANSWER_MODEL)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    tokenizer.model_max_length = LENGTH
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def rows(n: int, seed: int = 0) -> list[tuple[str, str]]:
    chance = random.Random(seed)
    return [(" ".join(chance.choices(WORDS, k=3)), " ".join(chance.choices(WORDS, k=n % 40 + 1)))
            for n in range(n)]  # fmt: skip


def test_the_best_span_is_the_best_of_all_pairs_that_are_short_enough() -> None:
    torch.manual_seed(0)
    starts, ends = torch.randn(20, 12), torch.randn(20, 12)
    context = (torch.arange(12) >= torch.randint(1, 12, (20, 1))).long()
    for longest in (1, 3, 30):
        found = window_answers(starts, ends, context, None, longest).numpy()
        for row in range(20):
            pairs = {
                (i, j): float(starts[row, i] + ends[row, j])
                for i in range(12) for j in range(i, min(12, i + longest))
                if context[row, i] and context[row, j]
            }  # fmt: skip
            best = max(pairs, key=lambda pair: pairs[pair])
            assert (found[row, FIRST_TOKEN], found[row, LAST_TOKEN]) == best
            assert found[row, SPAN] == pytest.approx(pairs[best])
            assert found[row, NONE] == pytest.approx(float(starts[row, 0] + ends[row, 0]))


def test_windows_get_what_plain_transformers_gives_whatever_else_is_in_the_batch(
    tmp_path: Path,
) -> None:
    path = made(tmp_path)
    opened = answer.open_answerer(open_model(str(path)), torch.device("cpu"), "fp32")
    texts = rows(30)
    encoded = opened.encoder.encode(texts)
    found = opened.read_windows(encoded)
    alone = [opened.read_windows(opened.encoder.encode([each])) for each in texts]
    assert np.array_equal(found, np.concatenate(alone))
    plain = AutoModelForQuestionAnswering.from_pretrained(path).eval()
    batch = encoded.batch([0])
    inputs = {name: each for name, each in batch.items() if name not in ("context", "windows")}
    with torch.no_grad():
        logits = plain(**inputs)
    none = logits.start_logits.log_softmax(1)[0, 0] + logits.end_logits.log_softmax(1)[0, 0]
    assert found[0, NONE] == pytest.approx(float(none), abs=1e-4)


def test_the_threshold_of_the_config_decides_whether_there_is_an_answer(tmp_path: Path) -> None:
    texts = rows(20)
    counts = []
    for number, threshold in enumerate((-1e9, 1e9)):
        path = made(tmp_path / str(number), no_answer_threshold=threshold, may_be_none=True)
        opened = answer.open_answerer(open_model(str(path)), torch.device("cpu"), "fp32")
        encoded = opened.encoder.encode(texts)
        contexts = [context for _, context in texts]
        found = answer.answers_of(
            encoded, opened.read_windows(encoded), contexts, np.arange(len(texts))
        )
        counts.append(sum(bool(text) for text in found.texts(opened.threshold)))
        for (_, context), span in zip(texts, found.spans, strict=True):
            assert context[span.start : span.end] == span.label
            assert span.label == span.label.strip() != ""
    assert counts == [0, 20]
    path = made(tmp_path / "always", no_answer_threshold=-1e9, may_be_none=False)
    opened = answer.open_answerer(open_model(str(path)), torch.device("cpu"), "fp32")
    assert opened.threshold == np.inf


def test_a_model_without_such_a_head_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path)
    config = path / "config.json"
    config.write_text(config.read_text().replace("BertForQuestionAnswering", "BertModel"))
    with pytest.raises(DataError, match="finds no answers"):
        answer.check_answerer(open_model(str(path)))


def test_contexts_are_encoded_with_the_models_own_length(tmp_path: Path) -> None:
    opened = answer.open_answerer(open_model(str(made(tmp_path))), torch.device("cpu"), "fp32")
    assert isinstance(opened.encoder, QuestionEncoder)
    assert opened.encoder.max_length == LENGTH
