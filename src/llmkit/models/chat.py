"""The chat template of a tokenizer: its own or one that is set, and what of its text is whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from llmkit.errors import ConfigError, DataError, InputNotFound

HEADINGS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '### ' + message['role'].capitalize() + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""Set where a tokenizer has none: it needs no token that the model does not know."""

PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' }}{% endfor %}"
)
"""What is said and nothing else; the end-of-text token ends a response."""

_KEY = "tokenizer.chat_template"
_ANSWER = "answer-0123456789"

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Template:
    """How a tokenizer writes conversations."""

    tokenizer: PreTrainedTokenizerFast
    end: str
    """The token that ends what the assistant says."""
    tail: str
    """What the template writes after that token."""
    ends: bool
    """Whether the template itself writes that token."""

    @property
    def end_id(self) -> int:
        """The id of the token that ends what the assistant says."""
        return int(self.tokenizer.convert_tokens_to_ids(self.end))

    def parted(self, messages: Messages, where: str) -> list[str]:
        """The text of a conversation, parted in turn into what the assistant reads and what it
        says, the token that ends it included.

        Raises DataError where the template refuses the conversation, or writes an earlier turn in
        another way once more is said, since the assistant would never read it so.
        """
        whole = self._text(messages, where)
        parts, done = [], 0
        for number, message in enumerate(messages, 1):
            if message["role"] != "assistant":
                continue
            before = self._text(messages[: number - 1], where, add_generation_prompt=True)
            after = whole if number == len(messages) else self._text(messages[:number], where)
            if not (whole.startswith(after) and after.startswith(before)) or len(before) < done:
                raise DataError(
                    f"the chat template does not keep what stands before message {number} as it is",
                    where=where,
                    next=f"give a conversation for each response, or another template in {_KEY}",
                )
            end = len(after) - len(self.tail) * after.endswith(self.tail)
            parts += [whole[done : len(before)], whole[len(before) : end]]
            done = end
        return parts if self.ends else [*parts[:-1], parts[-1] + self.end]

    def _text(self, messages: Messages, where: str, **options: Any) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise DataError(
                f"the chat template refuses the conversation: {error}",
                where=where,
                next=f"correct the row, or give another template in {_KEY}",
            ) from error


def settle(tokenizer: PreTrainedTokenizerFast, wish: str) -> tuple[Template, str]:
    """Gives the tokenizer the template that is wished for, and says in a line which it is.

    `wish` is `auto` (its own, else HEADINGS), `plain`, or the file of a template. Raises
    InputNotFound for a file that is none, and ConfigError for a template that cannot be used.
    """
    said = "its own"
    if wish == "plain":
        tokenizer.chat_template, said = PLAIN, "prompt and response as they are"
    elif wish != "auto":
        tokenizer.chat_template, said = _file(wish), wish
    elif not tokenizer.chat_template:
        tokenizer.chat_template, said = HEADINGS, "it had none; headings are set"
    template = _probed(tokenizer)
    return template, f"chat template of the tokenizer: {said}; {template.end} ends a response"


def _probed(tokenizer: PreTrainedTokenizerFast) -> Template:
    """The template of the tokenizer, with how it ends what the assistant says."""
    if tokenizer.eos_token is None:
        raise ConfigError(
            "the tokenizer has no end-of-text token, and no response could end",
            where="tokenizer.name_or_path",
            next="add eos_token to its tokenizer_config.json, or use another",
        )
    probe = Template(tokenizer, tokenizer.eos_token, "", ends=True)
    messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER})
    try:
        [_, answer] = probe.parted(messages, _KEY)
    except DataError as fault:
        raise ConfigError(fault.what, where=_KEY, next="give another template") from fault
    _, found, rest = answer.rpartition(_ANSWER)
    if not found:
        raise ConfigError("the chat template does not write what the assistant says", where=_KEY)
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
            f"there is no file {name!r} with a chat template",
            where=_KEY,
            next="write auto, plain, or the path of a Jinja template",
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name} is no chat template that can be read: {error}", where=_KEY
        ) from error
