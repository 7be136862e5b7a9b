"""The ladder of invariants for taggers: words in windows, entities over whole rows."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score, precision_score
from seqeval.scheme import IOB2
from torch.nn import functional
from transformers import PreTrainedModel

from llmkit.data.examples.subset import Subset
from llmkit.data.examples.tagged import NO_WORD, TaggedTable, TokenWindows, WindowEncoder
from llmkit.data.records.labels import SINGLE
from llmkit.data.records.tagging import tags
from llmkit.data.records.tagging.tags import BIO
from llmkit.data.records.tagging.words import joined_words
from llmkit.evaluation.labels import taggers
from llmkit.models import build, classifier
from llmkit.models import tokenizer as tokenizers
from llmkit.models.classifier import ClassifierHead
from llmkit.training.tasks.labels.classification_loss import balanced_weights
from llmkit.training.tasks.labels.tagging import TaggingLoss
from tests.jobs import WORDS, metrics

KINDS, LENGTH, N = ("X", "Y"), 16, 45
KNOWN = tags.tag_set(BIO, {f"B-{kind}" for kind in KINDS})


@lru_cache
def tokenizer() -> Any:
    return tokenizers.train_bpe_with_frame([" ".join(WORDS)] * 3, 300)


@lru_cache
def table(n: int = N, seed: int = 0) -> TaggedTable:
    """Rows of 1 to 40 words, so that some need several windows; the word tells the tag, except that
    a word after `the` continues its entity."""
    chance = random.Random(seed)
    texts, spans, raws = [], [], []
    for _ in range(n):
        words = chance.choices(WORDS, k=chance.randint(1, 40))
        row = ["O"] * len(words)
        for place, word in enumerate(words):
            kind = KINDS[len(word) % 2]
            if word in ("cat", "dog", "home", "mat"):
                row[place] = f"B-{kind}"
            elif place and words[place - 1] == "cat":
                row[place] = f"I-{row[place - 1][2:]}"
        text, places = joined_words(words)
        texts.append((text,)), spans.append(places), raws.append(row)
    return TaggedTable(texts, spans, tags.flat_tags(KNOWN, raws), KNOWN, [("a", 1)] * n)


def examples(n: int = N, seed: int = 0) -> TokenWindows:
    made = table(n, seed)
    return WindowEncoder(tokenizer(), LENGTH).encode(made.texts, made.words, made.targets)


def small(seed: int = 0, **settings: Any) -> PreTrainedModel:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **settings}
    config = classifier.new_config("bert", shape, tokenizer(), LENGTH, build.TAGGER_MODEL)
    ClassifierHead("", KNOWN.names).describe(config, tokenizer().pad_token_id)
    return build.new_model(config, seed, build.TAGGER_MODEL)


def task(n: int = N, seed: int = 0, **settings: Any) -> TaggingLoss:
    made = table(n, seed)
    figures = taggers.tag_figures_from(examples(n, seed), made)
    return TaggingLoss(len(made.targets), figures, **settings)


def test_the_loss_is_that_of_transformers_and_rows_of_padding_count_nothing() -> None:
    model, data = small().eval(), examples()
    rows = [3, -1, 7, -1, 11]
    batch, real = data.batch(rows), data.batch([3, 7, 11])
    sums = task().sums(model, batch)
    real.pop("words")
    expected = model(**real).loss.item()
    assert sums["loss"].item() / data.count(rows) == pytest.approx(expected, rel=1e-5)
    assert sums["tags"].bool().sum() == data.count(rows)


def test_class_weights_and_smoothing_are_those_of_torch() -> None:
    model, data = small().eval(), examples()
    weights = balanced_weights(SINGLE, table().targets, len(KNOWN))
    own, rows = task(class_weights=weights, label_smoothing=0.1), list(range(9))
    batch = data.batch(rows)
    sums = own.sums(model, batch)
    words, labels = batch.pop("words"), batch.pop("labels")
    logits, chosen = model(**batch).logits, words != NO_WORD
    expected = functional.cross_entropy(
        logits[chosen], labels[chosen], weight=torch.from_numpy(weights), label_smoothing=0.1
    )
    found = sums["objective"].item() / own.weight(data, [*rows, -1])
    assert found == pytest.approx(expected.item(), rel=1e-5)
    plain = functional.cross_entropy(logits[chosen], labels[chosen])
    assert sums["loss"].item() / data.count(rows) == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_the_micro_batch_size_changes_no_figure(trial, size) -> None:
    runs = []
    for number in (8, size):
        run = trial(
            str(number), micro_batch=number, steps=12, model=small(), task=task(21, 9),
            examples=examples(), validation=examples(21, 9),
        )  # fmt: skip
        run.run()
        runs.append(metrics(run.directory))
    for one, other in zip(*runs, strict=True):
        assert one == pytest.approx(other, rel=2e-4, abs=1e-5)
    assert {"validation_f1", "validation_f1_strict"} <= runs[0][-1].keys()


def test_validation_figures_are_those_of_seqeval_over_plain_transformers(trial) -> None:
    held_out, made = examples(21, 9), table(21, 9)
    run = trial(
        steps=30, micro_batch=4, eval_steps=30, model=small(), task=task(21, 9),
        examples=examples(), validation=held_out,
    )  # fmt: skip
    run.run()
    found, model = metrics(run.directory)[-1], run.model.eval()
    guess = np.zeros(len(made.targets), dtype=np.int64)
    loss = 0.0
    assert len(held_out) > 21  # some rows have several windows
    for window in range(len(held_out)):
        batch = held_out.batch([window])
        [words], [labels] = batch.pop("words"), batch.pop("labels")
        with torch.no_grad():
            [logits] = model(**batch).logits
        own = words != NO_WORD
        guess[words[own]] = logits[own].argmax(1)
        loss += functional.cross_entropy(logits[own], labels[own], reduction="sum").item()
    names, rows = [], []
    for flat, into in ((made.targets, names), (guess, rows)):
        for part in np.split(flat, made.starts[1:-1]):
            into.append([KNOWN.names[n] for n in part])
    assert 0 < found["validation_f1"] < 1
    expected = {
        "loss": loss / len(guess),
        "f1": f1_score(names, rows),
        "precision": precision_score(names, rows),
        "f1_macro": f1_score(names, rows, average="macro"),
        "f1_strict": f1_score(names, rows, mode="strict", scheme=IOB2),
        "accuracy": (guess == made.targets).mean(),
    }
    for name, value in expected.items():
        assert found[f"validation_{name}"] == pytest.approx(value, rel=1e-3), name


def test_a_subset_of_the_windows_is_measured_on_its_words_alone(trial) -> None:
    held_out, made, model = examples(21, 9), table(21, 9), small().eval()
    own = task(21, 9)
    whole = [n for n in range(len(held_out)) if n % 2]
    sums = own.sums(model, Subset(held_out, np.array(whole)).batch(range(len(whole))))
    asked = sums["tags"].numpy()
    figures = own.figures({k: v.double().detach().numpy() for k, v in sums.items()}, 1)
    chosen = asked > 0
    assert 0 < chosen.sum() < len(chosen)
    right = (asked[chosen] - 1 == made.targets[chosen]).mean()
    assert figures["accuracy"] == pytest.approx(right)


def test_the_weights_of_padding_and_words_without_tokens_are_nothing() -> None:
    weights = balanced_weights(SINGLE, table().targets, len(KNOWN))
    own, data = task(class_weights=weights), examples()
    assert own.weight(data, [-1]) == 0
    whole = own.weight(data, range(len(data)))
    assert whole == pytest.approx(float(weights[table().targets].sum()), rel=1e-5)
    assert task().weight(data, range(len(data))) == len(table().targets)
