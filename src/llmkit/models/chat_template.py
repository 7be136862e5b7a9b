"""The chat template of a tokenizer: its own or one that is set, and what of its text is whose."""

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
"""Set where a tokenizer has none: it needs no token that the model does not know."""

PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' }}{% endfor %}"
)
"""What is said and nothing else; the end-of-text token ends a response."""

_KEY = "tokenizer.chat_template"
_ANSWER = "answer-0123456789"

Messages = Sequence[Mapping[str, str]]


def render_chat(tokenizer: PreTrainedTokenizerFast, messages: Messages, **options: Any) -> str:
    """The text of a conversation, for `ControlTokens.ids_of_rendered`: control tokens that the
    messages name are hidden in it, so that they stay text.

    Raises whatever the template raises.
    """
    hidden = control_tokens(tokenizer).hide(list(messages))
    return str(tokenizer.apply_chat_template(hidden, tokenize=False, **options))


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

    def examples(self, messages: Messages, where: str) -> list[list[str]]:
        """The text of a conversation, parted in turn into what the assistant reads and what it
        says, the token that ends it included; control tokens are as `render_chat` gives them.

        One text, or one for each response where the template writes an earlier turn in another way
        once more is said (some drop its reasoning): a response is learned behind what is read when
        it is asked for. Raises DataError where the template refuses the conversation.
        """
        whole = self._text(messages, where)
        asked = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        before = [self._text(messages[:n], where, add_generation_prompt=True) for n in asked]
        after = [self._text(messages[: n + 1], where) for n in asked[:-1]] + [whole]
        if not all(text.startswith(part) for part, text in zip(before, after, strict=True)):
            raise DataError(
                "the chat template does not begin a response as it asks for it",
                where=where,
                next=f"give another template in {_KEY}",
            )
        if all(whole.startswith(text) for text in after):
            return [self._parts(before, after)]
        return [self._parts([b], [a]) for b, a in zip(before, after, strict=True)]

    def _parts(self, before: Sequence[str], after: Sequence[str]) -> list[str]:
        """The parts of the last text in `after`, of which all the others are beginnings."""
        parts: list[str] = []
        done = 0
        for begin, text in zip(map(len, before), after, strict=True):
            end = len(text) - len(self.tail) * text.endswith(self.tail)
            parts += [after[-1][done:begin], after[-1][begin:end]]
            done = end
        if not self.ends:
            parts[-1] += self.end
        return parts

    def _text(self, messages: Messages, where: str, **options: Any) -> str:
        try:
            return render_chat(self.tokenizer, messages, **options)
        except Exception as error:  # a template is a program: it may raise anything
            raise DataError(
                f"the chat template refuses the conversation: {error}",
                where=where,
                next=f"correct the row, or give another template in {_KEY}",
            ) from error


def set_template(tokenizer: PreTrainedTokenizerFast, wish: str) -> tuple[Template, str]:
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
        [[_, answer]] = probe.examples(messages, _KEY)
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
