"""The chat template of a tokenizer, and which parts of its text are prompt and which response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from llmkit.errors import ConfigError, DataError, InputNotFound
from llmkit.models.control_tokens import control_tokens

HEADINGS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '### ' + message['role'].capitalize() + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""The template for a tokenizer without one: it needs no token that the model does not know."""

PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' }}{% endfor %}"
)
"""The contents of the messages and nothing else; the end-of-text token ends a response."""

_KEY = "tokenizer.chat_template"
_ANSWER = "answer-0123456789"

ChatMessages = Sequence[Mapping[str, str]]


def render_chat(tokenizer: PreTrainedTokenizerFast, messages: ChatMessages, **options: Any) -> str:
    """The text of a conversation, for `ControlTokens.ids_of_rendered`.

    Names of control tokens in the messages are replaced by placeholders, so that they stay text.
    Raises whatever the template raises.
    """
    hidden = control_tokens(tokenizer).hide(list(messages))
    return str(tokenizer.apply_chat_template(hidden, tokenize=False, **options))


@dataclass(frozen=True)
class Template:
    """How a tokenizer formats conversations."""

    tokenizer: PreTrainedTokenizerFast
    end: str
    """The token that ends a response."""
    tail: str
    """The text that the template writes after that token."""
    ends: bool
    """Whether the template itself writes that token."""

    @property
    def end_id(self) -> int:
        """The id of the token that ends a response."""
        return int(self.tokenizer.convert_tokens_to_ids(self.end))

    def examples(self, messages: ChatMessages, where: str) -> list[list[str]]:
        """Splits the text of a conversation into alternating prompts and responses.

        A response includes the token that ends it; control tokens are as `render_chat` gives them.
        Returns one text, or one for each response if the template formats an earlier turn
        differently once messages follow (some drop its reasoning): training then uses the same
        prompt as generation. Raises DataError if the template refuses the conversation.
        """
        whole = self._text(messages, where)
        asked = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        before = [self._text(messages[:n], where, add_generation_prompt=True) for n in asked]
        after = [self._text(messages[: n + 1], where) for n in asked[:-1]] + [whole]
        if not all(text.startswith(part) for part, text in zip(before, after, strict=True)):
            raise DataError(
                "the chat template does not start a response with its own generation prompt",
                where=where,
                next=f"use another template in {_KEY}",
            )
        if all(whole.startswith(text) for text in after):
            return [self._parts(before, after)]
        return [self._parts([b], [a]) for b, a in zip(before, after, strict=True)]

    def _parts(self, before: Sequence[str], after: Sequence[str]) -> list[str]:
        """The prompts and responses of the last text in `after`; all others are prefixes of it."""
        parts: list[str] = []
        done = 0
        for begin, text in zip(map(len, before), after, strict=True):
            end = len(text) - len(self.tail) * text.endswith(self.tail)
            parts += [after[-1][done:begin], after[-1][begin:end]]
            done = end
        if not self.ends:
            parts[-1] += self.end
        return parts

    def _text(self, messages: ChatMessages, where: str, **options: Any) -> str:
        try:
            return render_chat(self.tokenizer, messages, **options)
        except Exception as error:  # a template is a program: it may raise anything
            raise DataError(
                f"the chat template refuses the conversation: {error}",
                where=where,
                next=f"correct the row, or use another template in {_KEY}",
            ) from error


def set_template(tokenizer: PreTrainedTokenizerFast, requested: str) -> tuple[Template, str]:
    """Sets the requested template of the tokenizer; returns it and a sentence that names it.

    `requested` is `auto` (its own, else HEADINGS), `plain`, or the path of a template. Raises
    InputNotFound for a missing file, and ConfigError for a template that cannot be used.
    """
    name = "its own"
    if requested == "plain":
        tokenizer.chat_template, name = PLAIN, "prompt and response as they are"
    elif requested != "auto":
        tokenizer.chat_template, name = _file(requested), requested
    elif not tokenizer.chat_template:
        tokenizer.chat_template, name = HEADINGS, "none, so headings are used"
    template = _probe(tokenizer)
    return template, f"chat template of the tokenizer: {name}; {template.end} ends a response"


def _probe(tokenizer: PreTrainedTokenizerFast) -> Template:
    """The template of the tokenizer, after finding how it ends a response."""
    if tokenizer.eos_token is None:
        raise ConfigError(
            "the tokenizer has no end-of-text token, which must end each response",
            where="tokenizer.name_or_path",
            next="add eos_token to its tokenizer_config.json, or use another",
        )
    probe = Template(tokenizer, tokenizer.eos_token, "", ends=True)
    messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER})
    try:
        [[_, answer]] = probe.examples(messages, _KEY)
    except DataError as fault:
        raise ConfigError(fault.what, where=_KEY, next="use another template") from fault
    _, found, rest = answer.rpartition(_ANSWER)
    if not found:
        raise ConfigError("the chat template does not write the response", where=_KEY)
    known = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    places = [(rest.index(token), -len(token), token) for token in known if token in rest]
    if not places:
        return Template(tokenizer, tokenizer.eos_token, rest, ends=False)
    place, _, end = min(places)
    return Template(tokenizer, end, rest[place + len(end) :], ends=True)


def _file(name: str) -> str:
    path = Path(name).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputNotFound(
            f"the chat template file {name!r} does not exist",
            where=_KEY,
            next="write auto, plain, or the path of a Jinja template",
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the chat template {name}: {error}", where=_KEY) from error
