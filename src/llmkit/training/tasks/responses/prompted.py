"""What tasks that learn from responses of a causal model to prompts have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel

from llmkit.config.schema import Config
from llmkit.data.records import findings
from llmkit.data.records.conversation_sets import Chats, RowForm, load_form
from llmkit.data.records.conversations import Conversation
from llmkit.data.records.parts import format_places
from llmkit.errors import ConfigError, DataError
from llmkit.inference import generate, prompts
from llmkit.models import build, chat_template, pretrained, tokenizer_saving
from llmkit.models import tokenizer as tokenizers
from llmkit.models.chat_template import Template
from llmkit.models.control_tokens import control_tokens
from llmkit.models.pretrained import Pretrained
from llmkit.reporting.format import many
from llmkit.training.tasks.responses.responding import Responding, X
from llmkit.training.tasks.task import Loss, Session

_LENGTH = 2048
"""Maximum length of a conversation in tokens if the model has no limit."""

_ASKED = 2
"""Number of held-out prompts that are answered after a validation."""

_C = TypeVar("_C", bound=Conversation)


class EncodedRows(Protocol):
    """Rows as token ids, without those that truncation has spoiled."""

    lacking: str
    """What is wrong with the rows that are skipped."""

    @property
    def left_out(self) -> tuple[int, ...]:
        """Their numbers."""

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of a row."""

    def __len__(self) -> int:
        """Number of rows."""

    @property
    def uncut(self) -> NDArray[Any]:
        """Numbers of tokens before truncation."""

    def report(self) -> dict[str, Any]:
        """What is reported of the lengths."""


class Opened(NamedTuple, Generic[_C]):
    """The rows of a task, and the template that makes texts of them."""

    data: Chats[_C]
    template: Template


def open_responses(
    asked: Config, pretrained: Pretrained, session: Session, form: RowForm[_C]
) -> Opened[_C]:
    """Reads the rows, and sets the chat template of the tokenizer. Raises the errors of reading,
    and DataError for a model that does not generate text."""
    console = session.console
    pretrained.check_causal()
    made, tokenizer = pretrained.config, pretrained.tokenizer
    tokenizers.check_fit(tokenizer, made, asked)
    template, note = chat_template.set_template(tokenizer, asked.tokenizer.chat_template)
    template = replace(template, tokenizer=tokenizer_saving.savable_tokenizer(tokenizer, made))
    data = load_form(
        form, asked, session.sources, session.watch, console.say, console.warn, tokenizer
    )
    console.say(note)
    rows = (each.contents for each in (*data.train, *data.validation))
    if found := control_tokens(tokenizer).warning(rows, "row"):
        console.warn(found)
    return Opened(data, template)


@dataclass(frozen=True)
class Prompted(Responding[X]):
    """Fine-tuning of a pretrained causal model on responses to prompts."""

    pretrained: Pretrained
    template: Template

    purpose = build.LANGUAGE_MODEL

    def begin(self) -> PreTrainedModel:
        """The given model."""
        return pretrained.load_model(self.pretrained, say=self.session.console.warn)

    def equip(self, model: PreTrainedModel, begun: bool) -> PreTrainedModel:
        """Set the model's end token to the one that ends a response in the template."""
        own = model.generation_config.eos_token_id
        ends = own if isinstance(own, list) else [] if own is None else [own]
        model.generation_config.eos_token_id = list(dict.fromkeys([*ends, self.template.end_id]))
        return model

    def samples(self, model: PreTrainedModel, loss: Loss, step: int) -> dict[str, Any]:
        """The model's current responses to a few held-out prompts."""
        some = self.data.validation or self.data.train
        few = [some[n * len(some) // _ASKED] for n in range(min(_ASKED, len(some)))]
        asked = [turns_of(each)[0] for each in few]
        ids = [prompts.chat_ids(messages[:-1], self.tokenizer) for messages in asked]
        settings, seed = self.config.generation, self.config.sampling_seed
        made = generate.continuations(model, self.tokenizer, ids, settings, seed)
        return {
            "samples": [
                {"prompt": messages[-2]["content"], "response": text}
                for messages, texts in zip(asked, made, strict=True)
                for text in texts
            ]
        }


def length_limit(model: PretrainedConfig) -> int:
    """Maximum number of tokens of a conversation, by the config of the model."""
    return int(getattr(model.get_text_config(), "max_position_embeddings", None) or _LENGTH)


def check_length(requested: Any, limit: int, key: str) -> None:
    """Raises ConfigError if a key asks for more tokens than the model has positions."""
    if requested != "auto" and requested > limit:
        raise ConfigError(
            f"{requested} tokens are more than the model's {limit} positions",
            where=f"data.{key}",
            next=f"set data.{key}={limit} or less",
        )


def turns_of(each: Conversation) -> tuple[list[dict[str, str]], str]:
    """The messages of a conversation for the chat template, and its file and row."""
    return [message._asdict() for message in each.messages], f"{each.path} row {each.number}"


def report_lengths(data: Chats[_C], encoded: Mapping[str, EncodedRows], session: Session) -> None:
    """Add the effects of tokenization to the data report; raises DataError if nothing is left to
    learn."""
    rows: list[dict[str, Any]] = []
    for name, some in (("train", data.train), ("validation", data.validation)):
        if not some:
            continue
        each = encoded[name]
        places = [(some[row].path, some[row].number) for row in each.left_out]
        rows += [{"split": name, **findings.place_of(place)} for place in places]
        if places:
            what = f"{many(len(places), 'row')} with {each.lacking}"
            if not len(each):
                raise DataError(
                    f"all {what} after {each.max_length} tokens: nothing is left for {name}",
                    where=format_places(places),
                    next="raise data.max_length, or shorten the prompts",
                )
            where = format_places(places)
            session.console.warn(f"{what} after {each.max_length} tokens, skipped: {where}")
        if cut := int((each.uncut > each.max_length).sum()) - len(places):
            share = cut / len(each.uncut)
            session.console.warn(
                f"{many(cut, 'row')} of {name} ({share:.1%}) lose their end after "
                f"{each.max_length} tokens"
            )
    data.report["left_out"] = findings.finding(rows)
    data.report["lengths"] = {name: each.report() for name, each in encoded.items()}
