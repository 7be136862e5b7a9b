"""Tiny models in directories, and servers of them in their own processes."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from safetensors.torch import save_file

from llmkit.models import build, classifier, tokenizer
from llmkit.models.classifier import ClassifierHead
from llmkit.models.experts.ensemble import EnsembleForCausalLM, ensemble_config
from tests import pairs
from tests.harness import Server, Trial
from tests.jobs import WORDS

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
CONTEXT = 128
LABELS = ("good", "bad", "neither")


def language_model(
    path: Path, seed: int = 0, template: str | None = None, context: int = CONTEXT
) -> Path:
    """A causal model with random weights, scaled up so that its distributions are far from flat."""
    bpe = tokenizer.train_bpe([" ".join(WORDS)] * 3, 300)
    bpe.chat_template = template
    config = build.model_config("llama", SHAPE, len(bpe), context, SPECIAL)
    model = build.causal_model(config, seed=seed)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20.0)
    model.save_pretrained(path)
    bpe.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model with a chat template."""
    return language_model(tmp_path_factory.mktemp("talker"), template=TEMPLATE)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model without a chat template."""
    return language_model(tmp_path_factory.mktemp("base"), seed=1)


@pytest.fixture(scope="session")
def novelist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model that can write for a minute: its texts never end by themselves."""
    path = language_model(tmp_path_factory.mktemp("novelist"), context=40_000)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((path / name).read_text()) | {"eos_token_id": None}
        (path / name).write_text(json.dumps(settings))
    settings = json.loads((path / "tokenizer_config.json").read_text()) | {"eos_token": None}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


NOVEL = "serve.max_new_tokens=40000"
"""The setting that lets it."""


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of two causal models."""
    path = tmp_path_factory.mktemp("experts")
    bpe = tokenizer.train_bpe([" ".join(WORDS)] * 3, 300)
    config = build.model_config("llama", SHAPE, len(bpe), CONTEXT, SPECIAL)
    several = [build.causal_model(config, seed=seed) for seed in (2, 3)]
    for model in several:
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(20.0)
    EnsembleForCausalLM(ensemble_config(["a", "b"], config), several).save_pretrained(path)
    # `llmkit merge` writes the statistics of the experts beside them.
    save_file({"none": torch.zeros(1)}, path / "experts.safetensors")
    bpe.save_pretrained(path)
    return path


def make_classifier(path: Path, columns: Sequence[str] = ("text",)) -> Path:
    """A classifier of texts of up to 16 tokens, with random weights."""
    framed = tokenizer.train_bpe_with_frame([" ".join(WORDS)] * 3, 300)
    config = classifier.new_config("llama", {"hidden_size": 32, "num_hidden_layers": 2}, framed, 16)
    ClassifierHead("single_label_classification", LABELS).describe(config, framed.pad_token_id)
    classifier.remember_columns(config, columns, ["label"])
    model = build.classifier(config, seed=0)
    torch.nn.init.normal_(list(model.parameters())[-2], std=2.0)
    framed.model_max_length = 16
    model.save_pretrained(path)
    framed.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def sorter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of single texts."""
    return make_classifier(tmp_path_factory.mktemp("sorter"))


@pytest.fixture(scope="session")
def pairer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of pairs of texts."""
    return make_classifier(tmp_path_factory.mktemp("pairer"), ("premise", "hypothesis"))


def make_tagger(path: Path, **facts: Any) -> Path:
    """A tagger of entities, with random weights and windows of 24 tokens."""
    return make_reader(path, build.TAGGER_MODEL, ("O", "B-X", "I-X", "B-Y", "I-Y"), facts)


def make_reader(
    path: Path, purpose: build.Purpose, labels: Sequence[str], facts: Mapping[str, Any]
) -> Path:
    """A model that reads windows of 24 tokens, with random weights."""
    framed = tokenizer.train_bpe_with_frame([" ".join(WORDS)] * 3, 300)
    config = classifier.new_config("bert", SHAPE, framed, 24, purpose)
    ClassifierHead("", tuple(labels)).describe(config, framed.pad_token_id)
    classifier.remember_columns(config, (), (), facts)
    model = build.new_model(config, 0, purpose)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    model.save_pretrained(path)
    framed.model_max_length = 24
    tokenizer.read_as_text(framed)
    framed.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger of running texts."""
    return make_tagger(tmp_path_factory.mktemp("tagger"))


@pytest.fixture(scope="session")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers questions."""
    facts = {"no_answer_threshold": -4.65, "longest_answer": 5}
    path = tmp_path_factory.mktemp("answerer")
    return make_reader(path, build.ANSWER_MODEL, ("first", "last"), facts)


@pytest.fixture(scope="session")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder-decoder model that remembers its prefix, with two beams."""
    own = pairs.bart_tokenizer()
    model = pairs.bart(own)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10)
    classifier.remember_columns(model.config, ["source"], ["target"], {"prefix": "to German: "})
    model.generation_config.update(num_beams=2, max_new_tokens=6, max_length=None)
    return pairs.save(model, own, tmp_path_factory.mktemp("translator"))


@dataclass
class Running:
    """A server in its own process."""

    trial: Trial
    url: str

    def client(self, **options: Any) -> openai.OpenAI:
        """A client that does not repeat requests by itself."""
        given = {"api_key": "none", "max_retries": 0, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **given)

    def get(self, path: str) -> httpx.Response:
        """The response to a GET request."""
        return httpx.get(self.url + path, timeout=60)

    def post(self, path: str, body: Any) -> httpx.Response:
        """The response to JSON."""
        return httpx.post(self.url + path, json=body, timeout=60)

    def figure(self, name: str, **labels: str) -> float:
        """A figure of /metrics; 0 if it is not there."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        for line in self.get("/metrics").text.splitlines():
            left, _, value = line.rpartition(" ")
            if left.partition("{")[0] == name and all(each in left for each in wanted):
                return float(value)
        return 0.0

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Any:
        """Ends it by a signal."""
        return self.trial.end(number)


@pytest.fixture(scope="session")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Where servers are started that several tests share; `trials` would end them after one."""
    found = Server(tmp_path_factory.mktemp("servers"))
    yield found
    found.close()


def started(where: Server, *arguments: object, **options: Any) -> Running:
    """A server that answers, on a free port."""
    trial = where.start("serve", *arguments, "--port", 0, **options)
    said = trial.until(r"serving at http://\S+\n")
    [url] = re.findall(r"serving at (http://\S+)\n", said)
    return Running(trial, url)


SERVED = {
    "talker": "talker", "base": "base", "sorter": "sorter", "pairer": "pairer", "ex": "experts",
    "tagger": "tagger", "answerer": "answerer", "translator": "translator",
}  # fmt: skip
"""The names of the models of `running`, and their fixtures."""


@pytest.fixture(scope="session")
def running(forker: Server, request: pytest.FixtureRequest) -> Iterator[Running]:
    """A server of all models, in fp32."""
    models = {name: request.getfixturevalue(fixture) for name, fixture in SERVED.items()}
    given = [part for name, path in models.items() for part in ("--model", f"{name}={path}")]
    found = started(forker, *given, "predict.precision=fp32", "generation.max_new_tokens=24")
    yield found
    assert found.stop().code == 0


@pytest.fixture
def serve(trials: Server) -> Callable[..., Running]:
    """Starts servers that one test uses and ends."""
    return lambda *arguments, **options: started(trials, *arguments, **options)


Generate = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def generate(forker: Server, tmp_path_factory: pytest.TempPathFactory) -> Generate:
    """What `llmkit generate` writes for prompts, each with its own settings."""

    def made(
        model: Path, prompts: Sequence[Mapping[str, Any]], *settings: object
    ) -> list[dict[str, Any]]:
        place = tmp_path_factory.mktemp("generated")
        asked, written = place / "prompts.jsonl", place / "texts.jsonl"
        asked.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
        ended = forker.run(
            "generate", "--model", model, "--prompts-file", asked, "--output", written,
            "generation.max_new_tokens=24", *settings,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        return [json.loads(line) for line in written.read_text().splitlines()]

    return made


def memory_of(process: int) -> int:
    """Bytes of a process that are in memory."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
