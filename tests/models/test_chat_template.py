"""Chat templates: whose is which part of a conversation's text."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from llmkit.errors import ConfigError, DataError, InputNotFound
from llmkit.models import chat_template, tokenizer

TURNS = (
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three?"},
    {"role": "assistant", "content": " four "},
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def bpe():
    return tokenizer.train_bpe(["one two three four " * 20], 300)


def responses(parts: list[str]) -> list[str]:
    return parts[1::2]


@pytest.mark.parametrize("wish", ["auto", "plain"])
def test_a_template_that_is_set_gives_each_response_and_the_end_of_text_to_the_assistant(
    bpe, wish
) -> None:
    template, said = chat_template.set_template(bpe, wish)
    parts = template.examples(TURNS, "row 1")[0]
    assert responses(parts) == ["two<|endoftext|>", " four <|endoftext|>"]
    assert "".join(parts) == bpe.apply_chat_template(list(TURNS), tokenize=False)
    assert template.end_id == bpe.eos_token_id
    assert ("headings" in said) is (wish == "auto")


def test_what_is_read_is_what_the_model_gets_when_it_is_asked(bpe) -> None:
    template, _ = chat_template.set_template(bpe, "auto")
    first, said, second, _ = template.examples(TURNS, "row 1")[0]
    before = [
        bpe.apply_chat_template(list(TURNS[:n]), tokenize=False, add_generation_prompt=True)
        for n in (2, 4)
    ]
    assert [first, first + said + second] == before


def test_the_template_is_saved_with_the_tokenizer(bpe, tmp_path) -> None:
    chat_template.set_template(bpe, "auto")
    bpe.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == chat_template.HEADINGS


def test_the_end_of_a_turn_is_the_templates_own_token(bpe) -> None:
    bpe.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    bpe.chat_template = CHATML
    template, said = chat_template.set_template(bpe, "auto")
    assert (template.end, template.tail) == ("<|im_end|>", "\n")
    parts = template.examples(TURNS[1:], "row 1")[0]
    assert responses(parts) == ["two<|im_end|>", " four <|im_end|>"]
    assert parts[2].startswith("\n<|im_start|>user")
    assert "its own" in said


def test_a_turn_that_no_token_ends_is_ended_by_the_end_of_text(bpe) -> None:
    bpe.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    template, _ = chat_template.set_template(bpe, "auto")
    assert responses(template.examples(TURNS, "row 1")[0]) == ["two", " four <|endoftext|>"]


def test_a_template_that_rewrites_what_was_said_gives_a_text_for_each_response(bpe) -> None:
    bpe.chat_template = (
        "{% for m in messages %}{{ m.role }}:"
        "{% if loop.last and m.role == 'assistant' %}(thought){% endif %}"
        "{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    template, _ = chat_template.set_template(bpe, "auto")
    end = "<|endoftext|>"
    first = f"system:Be short.{end}user:one?{end}assistant:"
    assert template.examples(TURNS, "row 1") == [
        [first, f"(thought)two{end}"],
        [f"{first}two{end}user:three?{end}assistant:", f"(thought) four {end}"],
    ]
    assert len(template.examples(TURNS[:3], "row 1")) == 1


def test_a_template_that_asks_for_another_beginning_is_reported_by_row(bpe) -> None:
    bpe.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt and messages|length > 2 %}model:{% endif %}"
    )
    template, _ = chat_template.set_template(bpe, "auto")
    with pytest.raises(DataError, match="with its own generation prompt") as fault:
        template.examples(TURNS, "chats.jsonl row 7")
    assert fault.value.where == "chats.jsonl row 7"


def test_what_a_template_refuses_is_reported_by_row(bpe) -> None:
    bpe.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    template, _ = chat_template.set_template(bpe, "auto")
    with pytest.raises(DataError, match="no system"):
        template.examples(TURNS, "row 1")


def test_a_template_of_a_file_is_used(bpe, tmp_path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{% for m in messages %}[{{ m.content }}]{{ eos_token }}{% endfor %}")
    template, said = chat_template.set_template(bpe, str(path))
    assert str(path) in said
    assert responses(template.examples(TURNS[1:3], "row 1")[0])[0].endswith("two]<|endoftext|>")


def test_templates_that_cannot_be_used_are_refused(bpe, tmp_path) -> None:
    with pytest.raises(InputNotFound):
        chat_template.set_template(bpe, str(tmp_path / "none"))
    for text in ("{% broken", "nothing of it"):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(ConfigError):
            chat_template.set_template(bpe, str(tmp_path / "bad"))
    bpe.eos_token = None
    with pytest.raises(ConfigError, match="end-of-text"):
        chat_template.set_template(bpe, "auto")
