"""A command opens each model once: one config load and one tokenizer load, however it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.models import build, classifier
from llmkit.models import tokenizer as tokenizers
from llmkit.models.classifier import ClassifierHead

TEXTS = [f"text {number} " + "with words " * (number % 7) for number in range(60)]
SIZES = {"hidden_size": 32, "num_hidden_layers": 1}

COUNTED = """
import json, sys
from collections import Counter

from transformers import AutoConfig, AutoTokenizer

counts, (config, *command) = Counter(), sys.argv[1:]

def count_opening(event, arguments):
    counts["openings of config.json"] += event == "open" and arguments[0] == config

def count_loads(loader, name):
    load = loader.from_pretrained

    def counted(*arguments, **keywords):
        counts[name] += 1
        return load(*arguments, **keywords)

    loader.from_pretrained = counted

count_loads(AutoConfig, "config loads")
count_loads(AutoTokenizer, "tokenizer loads")

from llmkit.cli import app

sys.argv = ["llmkit", *command]
sys.addaudithook(count_opening)
try:
    app.main()
finally:
    print(json.dumps(counts), file=sys.stderr)
"""
"""Runs a command line; the last line of stderr says how often a model was opened."""

MAX_OPENINGS = 4
"""Before the libraries load, when it is opened, its config, and the hash that results hang on."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model, a classifier, a text and rows."""
    place = tmp_path_factory.mktemp("opening")
    tokenizer = tokenizers.train_bpe(TEXTS, 300)
    ids = {f"{name}_token_id": tokenizer.eos_token_id for name in ("bos", "eos", "pad")}
    config = build.model_config("llama", SIZES, len(tokenizer), 64, ids)
    build.causal_model(config, seed=0).save_pretrained(place / "causal")
    tokenizer.save_pretrained(place / "causal")
    tokenizer.save_pretrained(place / "tokenizer")
    tokenizer = tokenizers.train_bpe_with_frame(TEXTS, 300)
    config = classifier.new_config("bert", SIZES, tokenizer, 64)
    ClassifierHead("single_label_classification", ("ham", "spam")).describe(
        config, tokenizer.pad_token_id
    )
    build.classifier(config, seed=0).save_pretrained(place / "classifier")
    tokenizer.save_pretrained(place / "classifier")
    (place / "text.txt").write_text("\n".join(TEXTS))
    rows = [f"{text},{('ham', 'spam')[number % 2]}\n" for number, text in enumerate(TEXTS)]
    (place / "rows.csv").write_text("text,label\n" + "".join(rows))
    return place


def counts(place: Path, model: str, environment: dict[str, str], *command: str) -> dict[str, int]:
    """How often a command opens its model."""
    directory = str(place / model)
    line = [sys.executable, "-c", COUNTED, f"{directory}/config.json", *command]
    line += ["--model", directory]
    ended = subprocess.run(line, env=environment, cwd=place, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stderr.splitlines()[-1])


@pytest.mark.parametrize(
    ("model", "command"),
    [
        pytest.param(
            "classifier", "predict --csv rows.csv predict.output=labels.csv", marks=pytest.mark.slow
        ),
        pytest.param("classifier", "evaluate --csv rows.csv", marks=pytest.mark.slow),
        pytest.param("causal", "evaluate --text text.txt", marks=pytest.mark.slow),
        ("causal", "generate --prompt text generation.max_new_tokens=2 --output texts.jsonl"),
    ],
    ids=["predict", "evaluate-rows", "evaluate-text", "generate"],
)
def test_a_command_loads_config_and_tokenizer_of_a_model_once(
    model: str, command: str, place: Path, environment: dict[str, str]
) -> None:
    found = counts(place, model, environment, *command.split())
    assert (found["config loads"], found["tokenizer loads"]) == (1, 1)
    assert found["openings of config.json"] <= MAX_OPENINGS


@pytest.mark.slow
def test_a_named_tokenizer_is_loaded_beside_the_models_own(
    place: Path, environment: dict[str, str]
) -> None:
    command = "generate --prompt text generation.max_new_tokens=2 --output named.jsonl".split()
    found = counts(place, "causal", environment, *command, "tokenizer.name_or_path=tokenizer")
    assert found["tokenizer loads"] == 2
