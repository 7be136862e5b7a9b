"""Small models and tokenizers of the tests' own, on the disk as users have them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from llmkit.distributed.processes import Processes, join_processes
from llmkit.models import tokenizer as tokenizers

WORDS = "the cat sat on a mat and saw how far the little dog had run away from 家 until émile sang"


@pytest.fixture(scope="session")
def processes() -> Processes:
    """This process alone, in fp32."""
    return join_processes("fp32")


def documents(count: int, seed: int = 0) -> list[str]:
    """Documents of a few to a hundred words."""
    chance = random.Random(seed)
    return [
        " ".join(chance.choices(WORDS.split(), k=chance.choice((1, 3, 20, 100))))
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents as JSON lines, one of them blank, each of one of three genres."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    rows = [{"text": text, "genre": "abc"[n % 3]} for n, text in enumerate(documents(40))]
    rows.insert(7, {"text": " ", "genre": "blank"})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def one_id(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model whose documents are framed by one id."""
    return saved(tmp_path_factory.mktemp("one"), byte_level(320), seed=1)


@pytest.fixture(scope="session")
def two_ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model whose tokenizer opens each text with a token of its own."""
    tokenizer = byte_level(290)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return saved(tmp_path_factory.mktemp("two"), tokenizer, seed=2)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked model."""
    tokenizer = byte_level(300)
    tokenizer.eos_token = tokenizer.bos_token = None
    tokenizer.add_special_tokens(
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    )
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ids
    )
    torch.manual_seed(3)
    shape = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=24, initializer_range=0.3,
    )  # fmt: skip
    return _written(BertForMaskedLM(shape), tokenizer, tmp_path_factory.mktemp("bert"))


def byte_level(size: int) -> PreTrainedTokenizerFast:
    return tokenizers.train_bpe(documents(60, seed=9), size)


def saved(directory: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> Path:
    """A tiny Llama of 32 positions whose weights are large enough to have opinions."""
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
        initializer_range=0.3, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return _written(LlamaForCausalLM(shape), tokenizer, directory)


def _written(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> Path:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
