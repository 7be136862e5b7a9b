"""Prompts are framed as the documents of pretraining are, but for what closes those."""

from __future__ import annotations

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from llmkit.config.schema import GenerationConfig
from llmkit.data.text.documents import Piece
from llmkit.data.text.token_file import TokenEncoder
from llmkit.inference import generate, prompts
from llmkit.inference.batching import Engine
from llmkit.inference.requests import PromptRequest
from llmkit.models import pretrained
from llmkit.models import tokenizer as tokenizers
from llmkit.models.pretrained import open_model
from tests.jobs import SHARED

TEXT = "the cat <|endoftext|> sat"


def ids(tokenizer: PreTrainedTokenizerFast, text: str, model, **settings) -> list[int]:
    asked = [PromptRequest(text, "test")]
    config = GenerationConfig(**settings)
    (prompt,) = prompts.encode_prompts(asked, tokenizer, model.config, config, seed=0)
    return list(prompt.ids)


@pytest.fixture
def closing() -> PreTrainedTokenizerFast:
    """A tokenizer whose post-processor puts [CLS] before and [SEP] behind every text."""
    return tokenizers.train_bpe_with_frame([TEXT] * 3, 300)


def test_a_prompt_has_the_ids_of_a_document_without_its_end(closing, llama) -> None:
    frame = tokenizers.framing(closing)
    [document] = TokenEncoder(closing, [TEXT]).encode([Piece(TEXT, True)])
    assert ids(closing, TEXT, llama) == [frame.opening, *document]
    assert closing(TEXT)["input_ids"][-1] == frame.closing


def test_an_empty_prompt_is_the_token_that_opens_a_text(closing, bpe, llama) -> None:
    assert ids(closing, "", llama) == [closing.cls_token_id]
    assert ids(bpe, "", llama) == [bpe.bos_token_id]


def test_a_control_token_in_a_prompt_is_text_unless_it_is_asked_for(bpe, llama) -> None:
    assert bpe.eos_token_id not in ids(bpe, TEXT, llama)
    assert bpe.decode(ids(bpe, TEXT, llama)) == TEXT
    asked = ids(bpe, TEXT, llama, split_special_tokens=False)
    assert asked == bpe(TEXT)["input_ids"]
    assert bpe.eos_token_id in asked


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared models")
@pytest.mark.parametrize("single", ["<|start_story|> $A <|end_story|>", "<|start_story|> $A"])
def test_a_post_processor_that_closes_texts_changes_no_continuation(single) -> None:
    directory = str(SHARED / "models" / "tinystories-656k")
    tokenizer, model = (
        tokenizers.load_tokenizer(directory),
        pretrained.load_model(open_model(directory)).eval(),
    )
    special = [
        (t, tokenizer.convert_tokens_to_ids(t)) for t in ("<|start_story|>", "<|end_story|>")
    ]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, pair="$A $B", special_tokens=special
    )
    settings = GenerationConfig(do_sample=False, max_new_tokens=10)
    asked = prompts.encode_prompts(
        [PromptRequest("Once upon a time", "test")], tokenizer, model.config, settings, seed=0
    )
    engine = Engine(model, tokenizer)
    (sample,) = generate.generate_samples(engine, asked, engine.sampler(settings))
    assert list(sample.tokens) == [313, 598, 303, 1049, 1468, 267, 628, 333, 94, 1210]
