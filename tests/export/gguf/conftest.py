"""Small models with random weights, and tokenizers with each rule that splits text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmkit.export.gguf import writing
from llmkit.export.gguf.tensors import GgufType
from llmkit.export.gguf.vocabulary import PATTERNS
from llmkit.export.gguf.writing import GgufPlan
from llmkit.export.source import ExportSource
from llmkit.models import pretrained
from llmkit.models.tokenizer_saving import PROBE
from llmkit.progress import Advance

MakeModel = Callable[..., Path]
END = "<|endoftext|>"
TEXTS = [PROBE, Path(__file__).read_text(encoding="utf-8"), *PROBE.split(), "don't DON'T 1234"] * 3


def splitting(name: str) -> Any:
    """The pre-tokenizer that llama.cpp knows by this name."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "gpt-2":
        return whole
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    pattern = next(pattern for pattern, known in PATTERNS.items() if known == name)
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, byte_level])


def trained(pre: str, size: int = 700, **settings: Any) -> Tokenizer:
    """A byte-level BPE with this rule."""
    made = Tokenizer(models.BPE(**settings))
    made.pre_tokenizer, made.decoder = splitting(pre), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def wrapped(backend: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, bos_token=END, pad_token=END, **settings
    )


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Writes a random model of a type, and a tokenizer."""

    def made(kind: str, tokenizer: PreTrainedTokenizerFast | None = None, **settings: Any) -> Path:
        if tokenizer is None:
            backend = trained("qwen2" if kind == "qwen2" else "gpt-2")
            if kind == "qwen2":  # as transformers loads any tokenizer beside a qwen2 model
                backend.normalizer = normalizers.NFC()
            tokenizer = wrapped(backend)
        sizes = {
            "vocab_size": 704, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 96, "bos_token_id": 0, "eos_token_id": 0,
            "pad_token_id": None, "initializer_range": 0.2,
        }  # fmt: skip
        if kind != "gpt2":
            sizes |= {"intermediate_size": 96, "num_key_value_heads": 2}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**sizes, **settings}))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1:  # norms and biases are not all 1 and 0
                    weight.add_(torch.randn_like(weight) * 0.1)
        directory = tmp_path / kind
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory

    return made


@contextmanager
def silent(label: str, total: int) -> Iterator[Advance]:
    """A display that shows nothing."""
    yield lambda amount: None


def write(directory: Path, file: Path, type: GgufType) -> GgufPlan:
    """Writes the model of a directory."""
    source = ExportSource(pretrained.open_model(str(directory)))
    plan = writing.plan_gguf(source, type)
    tensors = plan.tensors(source.load(silent, print))
    writing.write_gguf(file, plan.metadata, tensors, lambda amount: None)
    return plan
