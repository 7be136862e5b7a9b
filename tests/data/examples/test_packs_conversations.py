"""Token ids of conversations: what is read, what is predicted, and what is cut."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer

from llmkit.data.examples import packs
from llmkit.inference import prompts
from llmkit.models import chat_template, tokenizer
from tests.jobs import SHARED, needs_shared

CHATS = [
    [
        {"role": "user", "content": "What is the cat?"},
        {"role": "assistant", "content": "the cat is a cat\n\nindeed"},
        {"role": "user", "content": " and the dog \u00e9\U0001f600"},
        {"role": "assistant", "content": "\n the dog"},
    ],
    [{"role": "user", "content": "the mat"}, {"role": "assistant", "content": "mat the mat"}],
]


@pytest.fixture(scope="module")
def bpe():
    return tokenizer.train_bpe(["the cat is a cat and the dog on the mat indeed " * 9], 320)


def encoded(own, wish: str, chats, length: int = 1000) -> packs.Responses:
    template, _ = chat_template.set_template(own, wish)
    return packs.encode_responses(
        own, [template.examples(each, "row")[0] for each in chats], length
    )


def test_what_precedes_a_response_is_what_generation_asks_with(bpe) -> None:
    found = encoded(bpe, "auto", CHATS)
    for number, messages in enumerate(CHATS):
        begin, end = found.starts[number : number + 2]
        ids, scored = found.ids[begin:end].tolist(), found.scored[begin:end]
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                asked = prompts.chat_ids(messages[:turn], bpe)
                assert tuple(ids[: len(asked)]) == asked
                said = ids[len(asked) :][: ids[len(asked) :].index(bpe.eos_token_id) + 1]
                assert bpe.decode(said) == message["content"] + "<|endoftext|>"
                assert scored[len(asked) : len(asked) + len(said)].all()
                scored[len(asked) : len(asked) + len(said)] = False
        assert not scored.any()
    assert found.parted == 0


def test_a_token_never_holds_both_prompt_and_response(bpe) -> None:
    chats = [[{"role": "user", "content": "the c"}, {"role": "assistant", "content": "at"}]]
    assert len(bpe("cat")["input_ids"]) < 3  # together they would be one token fewer
    found = encoded(bpe, "plain", chats)
    asked = prompts.chat_ids(chats[0][:1], bpe)
    assert found.parted == 1
    assert tuple(found.ids[: len(asked)].tolist()) == asked
    assert bpe.decode(found.ids[len(asked) :].tolist()) == "at<|endoftext|>"
    assert found.scored.tolist() == [False] * len(asked) + [True] * (len(found.ids) - len(asked))


def test_the_cut_is_counted_and_leaves_out_what_has_no_response_left(bpe) -> None:
    whole = encoded(bpe, "auto", CHATS)
    lengths = whole.lengths.tolist()
    asked = len(prompts.chat_ids(CHATS[1][:1], bpe))
    cut = encoded(bpe, "auto", CHATS, asked + 1)
    assert cut.uncut.tolist() == lengths
    assert cut.left_out == ((0,) if len(prompts.chat_ids(CHATS[0][:1], bpe)) > asked else ())
    assert cut.report()["truncated"] == 2
    texts = [["the cat", "the dog"], ["the mat " * 9, "the dog"]]
    both = packs.encode_responses(bpe, texts, 10, rows=[4, 7])
    assert both.left_out == (7,)
    none = encoded(bpe, "auto", CHATS[1:], asked)
    assert (len(none), none.left_out) == (0, (0,))


@needs_shared
def test_a_sentencepiece_tokenizer_puts_no_space_before_a_response() -> None:
    own = AutoTokenizer.from_pretrained(SHARED / "models" / "tinystories-656k")
    chats = [
        [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "Tom and Lily"}]
    ]
    found = encoded(own, "auto", chats)
    asked = prompts.chat_ids(chats[0][:1], own)
    whole = own(own.apply_chat_template(chats[0], tokenize=False), add_special_tokens=False)[
        "input_ids"
    ]
    assert found.ids.tolist() == whole
    assert np.flatnonzero(found.scored).tolist() == list(range(len(asked), len(whole)))
    assert found.parted == 0


def test_the_first_token_of_a_text_is_not_predicted(bpe) -> None:
    found = packs.encode_responses(bpe, [["", "the cat<|endoftext|>"]], 50)
    assert not found.scored[0]
    assert found.scored[1:].all()
