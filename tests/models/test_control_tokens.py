"""Control tokens: those that a person writes are text, those of a template are tokens."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from llmkit.data.examples import packs
from llmkit.data.examples.encoded import Encoder
from llmkit.inference import prompts
from llmkit.models import chat_template
from llmkit.models import tokenizer as tokenizers
from llmkit.models.control_tokens import control_tokens, renamed, text_only

CONTROL = ["<pad>", "<s>", "</s>", "<|im_end|>"]
TEXTS = [
    "The cat sat on the mat, and the dog ran.", "a  b\n\n\tc 12345", "It's a café!", "你好世界",
    "", " leading", "the mat the mat the mat",
]  # fmt: skip
WRITTEN = ["ok </s> no", "</s>", "a<|im_end|><s>b", "the cat <pad>", "x<|im_end|>\n"]


def wrapped(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", **special}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=["<|im_end|>"], **names
    )


def byte_level(ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=CONTROL, initial_alphabet=alphabet),
    )
    return wrapped(backend)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """A Unigram vocabulary, in which control tokens are pieces like any other."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(
        [*TEXTS, *WRITTEN],
        trainers.UnigramTrainer(
            vocab_size=100, special_tokens=[*CONTROL, "<unk>"], unk_token="<unk>"
        ),
    )
    return wrapped(backend, unk_token="<unk>")


def word_pieces() -> PreTrainedTokenizerFast:
    """Words parted at spaces alone, so that a control token may be a whole word."""
    pieces = ["<unk>", *CONTROL, "the", "cat", "##s", "o", "##k", "x", "n", "##o"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(backend, unk_token="<unk>")


def merged_from_letters() -> PreTrainedTokenizerFast:
    """A control token that is also what merges of ordinary text make."""
    backend = Tokenizer(
        models.BPE({"H": 0, "u": 1, "Hu": 2, "s": 3, "Hus": 4}, [("H", "u"), ("Hu", "s")])
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="Hu", pad_token="Hu")


MAKERS = [byte_level, lambda: byte_level(ignore_merges=True), sentencepiece_like, word_pieces]
NAMES = ["byte-level", "ignore-merges", "unigram", "word-pieces"]


@pytest.fixture(params=MAKERS, ids=NAMES)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.param()


def control_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    return {id for id in tokenizer.all_special_ids if id != tokenizer.unk_token_id}


def test_text_without_control_tokens_keeps_its_ids(tokenizer) -> None:
    for copy in (renamed(tokenizer), text_only(tokenizer)):
        for text in TEXTS:
            assert copy.encode(text, add_special_tokens=False).ids == tokenizer.encode(
                text, add_special_tokens=False
            )
            assert copy.encode(text).ids == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("text", WRITTEN)
def test_a_control_token_that_is_written_is_text(tokenizer, text: str) -> None:
    assert control_ids(tokenizer) & set(tokenizer(text)["input_ids"])
    found = control_tokens(tokenizer).ids(text)
    assert found
    assert not control_ids(tokenizer) & set(found)


def test_what_is_written_decodes_to_what_was_written() -> None:
    tokenizer = byte_level()
    for text in WRITTEN:
        assert tokenizer.decode(control_tokens(tokenizer).ids(text)) == text


def test_a_control_token_that_ordinary_merges_make_is_text_too() -> None:
    tokenizer = merged_from_letters()
    assert control_tokens(tokenizer).ids("Hu") == (0, 1)
    assert control_tokens(tokenizer).ids("us") == tuple(tokenizer("us")["input_ids"])


def test_a_control_token_that_the_normalizer_makes_is_text_too() -> None:
    tokenizer = word_pieces()
    loud = AddedToken("<|stop|>", special=True, normalized=True)
    tokenizer.add_special_tokens({"eos_token": loud})
    assert tokenizer.eos_token_id in tokenizer("the <|STOP|>")["input_ids"]
    assert tokenizer.eos_token_id not in control_tokens(tokenizer).ids("the <|STOP|>")


@pytest.fixture
def chatty() -> PreTrainedTokenizerFast:
    tokenizer = byte_level()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content | trim }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return tokenizer


MESSAGES = [
    {"role": "user", "content": "say </s> and <|im_end|> now"},
    {"role": "assistant", "content": "ok </s> 1. "},
]


def test_a_template_alone_places_control_tokens(chatty) -> None:
    ids = prompts.chat_ids(MESSAGES[:1], chatty)
    end = chatty.convert_tokens_to_ids("<|im_end|>")
    assert [id for id in ids if id in control_ids(chatty)] == [chatty.bos_token_id, end]
    assert chatty.decode(ids) == ("<s>user: say </s> and <|im_end|> now<|im_end|>\nassistant: ")


def test_a_chat_without_control_tokens_in_its_words_keeps_its_ids(chatty) -> None:
    plain = [{"role": "user", "content": "the cat"}]
    expected = chatty.apply_chat_template(plain, tokenize=True, add_generation_prompt=True)
    assert list(prompts.chat_ids(plain, chatty)) == expected["input_ids"]


def test_a_response_may_name_the_token_that_ends_it(chatty) -> None:
    template, _ = chat_template.set_template(chatty, "auto")
    [parts] = template.examples(MESSAGES, "row 1")
    encoded = packs.encode_responses(chatty, [parts], 4096)
    scored = encoded.ids[encoded.scored]
    assert chatty.decode(scored) == "ok </s> 1.<|im_end|>"
    assert [id for id in scored.tolist() if id in control_ids(chatty)] == [scored[-1]]
    prompt = prompts.chat_ids(MESSAGES[:1], chatty)
    assert encoded.ids[: len(prompt)].tolist() == list(prompt)


def test_a_classifier_reads_control_tokens_as_text(tokenizer) -> None:
    encoder = Encoder(tokenizer, 512)
    encoded = encoder.encode([(text,) for text in WRITTEN + TEXTS])
    rows = [encoded.ids[a:b].tolist() for a, b in pairwise(encoded.starts)]
    for text, ids in zip(WRITTEN, rows, strict=False):
        assert not control_ids(tokenizer) & set(ids), text
    assert rows[len(WRITTEN) :] == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert encoded.ids.dtype == np.int32


def framed(make: Callable[[], PreTrainedTokenizerFast], single: str) -> PreTrainedTokenizerFast:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make()
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in CONTROL]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, pair="$A $B", special_tokens=special
    )
    return tokenizer


@pytest.mark.parametrize(
    ("single", "before"),
    [
        ("$A", []), ("$A </s>", []), ("<s> $A", ["<s>"]), ("<s> $A </s>", ["<s>"]),
        ("<s> <s> $A </s> </s>", ["<s>"]), ("</s> $A </s>", ["</s>"]),
        ("<pad> <s> $A </s>", ["<pad>", "<s>"]),
    ],
)  # fmt: skip
def test_a_prompt_is_opened_as_the_tokenizer_does_and_not_closed(single, before) -> None:
    tokenizer = framed(byte_level, single)
    ids = tokenizers.prompt_ids(tokenizer, "the cat")
    text = tokenizer.encode("the cat", add_special_tokens=False)
    assert list(ids) == [*tokenizer.convert_tokens_to_ids(before), *text]
    frame = tokenizers.framing(tokenizer)
    assert frame.opening == (ids[len(before) - 1] if before else tokenizer.eos_token_id)
    assert frame.closing == tokenizer.eos_token_id


def test_control_tokens_of_a_prompt_are_tokens_where_that_is_asked_for() -> None:
    tokenizer = framed(byte_level, "<s> $A </s>")
    asked = tokenizers.prompt_ids(tokenizer, "<s>the<|im_end|>", split_special_tokens=False)
    assert list(asked) == tokenizer.encode("<s>the<|im_end|>", add_special_tokens=False)
    assert asked[0] == tokenizer.bos_token_id
    assert asked[1] != tokenizer.bos_token_id


def test_an_end_token_that_is_not_marked_as_special_is_one() -> None:
    backend = byte_level().backend_tokenizer
    backend.add_tokens([AddedToken("<|end|>", special=False), AddedToken("<think>", special=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    end, think = (tokenizer.convert_tokens_to_ids(name) for name in ("<|end|>", "<think>"))
    found = control_tokens(tokenizer).ids("<think>a<|end|>")
    assert end not in found
    assert think in found  # a token that is added is part of the text


def test_rows_that_name_control_tokens_are_counted() -> None:
    control = control_tokens(byte_level())
    rows = [("fine",), ("a </s>", "<|im_end|>"), ("</s></s>",)]
    assert control.warning(rows, "row") == (
        "2 rows with the name of a control token (</s>, <|im_end|>), read as text"
    )
    assert control.warning(rows[:1], "row") is None
