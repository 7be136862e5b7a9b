"""Completion: learn the responses to prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PretrainedConfig, PreTrainedModel

from llmkit.config import jobs
from llmkit.config.schema import Config
from llmkit.data.examples import order, packs
from llmkit.data.examples.packs import Packs, Responses
from llmkit.data.records import conversations, findings
from llmkit.data.records.conversations import Chats, Conversation
from llmkit.data.records.parts import format_places
from llmkit.errors import ConfigError, DataError
from llmkit.evaluation.passages import response_passages
from llmkit.inference import generate, prompts
from llmkit.models import build, chat_template, logits, packing, pretrained, tokenizer_saving
from llmkit.models import tokenizer as tokenizers
from llmkit.models.chat_template import Template
from llmkit.models.control_tokens import control_tokens
from llmkit.models.experts import balance
from llmkit.models.experts.balance import Balance
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Watch
from llmkit.reporting.format import many
from llmkit.reporting.held_out import HeldOut
from llmkit.training import run_directory
from llmkit.training.forecast.expectation import expect_of_task
from llmkit.training.tasks import defaults
from llmkit.training.tasks.causal import CausalLoss
from llmkit.training.tasks.responses import answers
from llmkit.training.tasks.responses.responding import Responding, check_responses
from llmkit.training.tasks.task import Examples, Loss, Rows, Session, Sums

_LENGTH = 2048
"""Maximum length of a conversation in tokens if the model has no limit."""

ROW, ROWS = 512, 40
"""Maximum tokens of a packed row unless a conversation is longer, and the minimum number of rows of
a small data set, so that it has enough steps."""


_ASKED = 2
"""Number of held-out prompts that are answered after a validation."""


class CompletionLoss(CausalLoss):
    """Cross entropy of each response token, given those before it in its conversation."""

    def __init__(self, linear_head: bool = False, balance: Balance | None = None) -> None:
        super().__init__(n_bytes=0, linear_head=linear_head, balance=balance)

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """The metrics of the responses, without bits per byte."""
        found = super().figures(sums, predictions)
        return {name: value for name, value in found.items() if name != "bits_per_byte"}


@dataclass(frozen=True)
class Completion(Responding):
    """Fine-tuning on responses to prompts, or on the assistant's turns of conversations."""

    pretrained: Pretrained
    template: Template
    encoded: dict[str, Responses]
    """`train`, and `validation` if there is any."""
    packs: dict[str, Packs]
    """The same, arranged in rows."""
    max_length: int
    """Maximum number of tokens of a conversation."""

    purpose = build.LANGUAGE_MODEL

    @classmethod
    def open(cls, asked: Config, pretrained: Pretrained | None, session: Session) -> Self:
        """Read the conversations, apply the chat template, and tokenize them."""
        config, console = asked, session.console
        assert pretrained is not None
        pretrained.check_causal()
        made, tokenizer = pretrained.config, pretrained.tokenizer
        tokenizers.check_fit(tokenizer, made, config)
        template, note = chat_template.set_template(tokenizer, config.tokenizer.chat_template)
        template = replace(template, tokenizer=tokenizer_saving.savable_tokenizer(tokenizer, made))
        data = conversations.load_conversations(
            config, session.sources, session.watch, console.say, console.warn, tokenizer
        )
        console.say(note)
        rows = (each.contents for each in (*data.train, *data.validation))
        if found := control_tokens(tokenizer).warning(rows, "row"):
            console.warn(found)
        length = _max_length(config, made)
        parts = {"train": data.train, "validation": data.validation}
        encoded = {
            name: _encoded(some, template, length, session.watch)
            for name, some in parts.items()
            if some
        }
        _report(data, encoded, session)
        check_responses(config, "validation" in encoded)
        requested = config.data.block_size
        width = _width(encoded, made) if requested == "auto" else requested
        config = config.changed(data=data.data.changed(max_length=length, block_size=width))
        task = cls(
            session,
            asked,
            config,
            data,
            template.tokenizer,
            pretrained,
            template,
            encoded,
            {},
            length,
        )
        return task.arranged(width)

    @classmethod
    def outline(
        cls, asked: Config, pretrained: Pretrained | None, session: Session
    ) -> dict[str, Any]:
        """The data report, lengths, and the size of the model."""
        task = cls.open(asked, pretrained, session)
        with torch.device("meta"):
            model = build.causal_model(task.pretrained.config, seed=0)
        model.requires_grad_(task.lora is None)
        return {
            "command": cls.command,
            "run_dir": str(run_directory.locate_run(asked, cls.command)),
            "architecture": task.pretrained.config.model_type,
            "parameters": model.num_parameters(),
            "max_length": task.max_length,
            "block_size": task.config.data.block_size,
            "global_batch_size": task.config.train.global_batch_size,
            "expected": expect_of_task(task, model),
            **task.data.report,
        }

    def arranged(self, width: int | None) -> Self:
        """The task with packed rows of this width, or with one row per conversation, and with every
        training `auto` resolved for them."""
        pad = self.template.end_id  # neither scored nor attended to
        rows = {
            name: packs.alone(each, pad) if width is None else packs.packed(each, width, pad)
            for name, each in self.encoded.items()
        }
        train = defaults.completing(
            self.asked.train,
            len(rows["train"]),
            int(rows["train"].lengths.mean()) if width is None else width,
            int(self.pretrained.config.get_text_config().hidden_size),
            self.config.model.lora.r is not None,
            self.session.processes.device.type,
        )
        defaults.check_best(train, jobs.RESPONSE_METRICS, validated="validation" in rows)
        return replace(self, config=self.config.changed(train=train), packs=rows)

    @property
    def examples(self) -> Packs:
        """The training rows."""
        return self.packs["train"]

    @property
    def validation(self) -> Packs | None:
        """The held-out rows."""
        return self.packs.get("validation")

    @property
    def tokens_per_example(self) -> int:
        """The mean length."""
        return int(self.examples.lengths.mean())

    @property
    def content(self) -> dict[str, str]:
        """The hashes of the tokenized conversations."""
        return {f"{name} data": each.fingerprint for name, each in self.encoded.items()}

    def begin(self) -> PreTrainedModel:
        """The given model."""
        return pretrained.load_model(self.pretrained, say=self.session.console.warn)

    def equip(self, model: PreTrainedModel, begun: bool) -> PreTrainedModel:
        """Set the model's end token to the one that ends a response in the template."""
        own = model.generation_config.eos_token_id
        ends = own if isinstance(own, list) else [] if own is None else [own]
        model.generation_config.eos_token_id = list(dict.fromkeys([*ends, self.template.end_id]))
        return model

    def fitted(self, model: PreTrainedModel) -> Self:
        """The task with one row per conversation if the model cannot isolate packed ones."""
        if packing.isolates(model):
            return self
        self.session.console.say(
            f"{type(model).__name__} gets one row per conversation: it cannot keep packed ones "
            "apart"
        )
        return self.arranged(None)

    def losses(self, model: PreTrainedModel) -> Callable[[Examples | None], Loss]:
        """The same loss for all examples."""
        loss = CompletionLoss(logits.has_linear_head(model), balance.balance_of(model))
        return lambda examples: loss

    def rows_of_step(self, step: int, *, global_batch_size: int, limit: int | None) -> Rows:
        """Every row once per epoch; unpacked rows are batched by similar length."""
        how: dict[str, Any] = {"global_batch_size": global_batch_size, "limit": limit}
        how["seed"] = self.config.seed
        if self.examples.width is None:
            return order.rows_by_length(step, lengths=self.examples.lengths, **how)
        return order.rows_of_step(step, n_examples=len(self.examples), **how)

    def samples(self, model: PreTrainedModel, loss: Loss, step: int) -> dict[str, Any]:
        """The model's current responses to a few held-out prompts."""
        some = self.data.validation or self.data.train
        few = [some[n * len(some) // _ASKED] for n in range(min(_ASKED, len(some)))]
        asked = answers.as_messages(few)
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

    def passages(self, final: PreTrainedModel) -> HeldOut:
        """The likelihood of the responses of each held-out conversation."""
        assert self.validation is not None
        content = self.encoded["validation"].fingerprint
        return response_passages(final, self.validation, content, self.session.watch)

    def answers(
        self, final: PreTrainedModel, directory: Path
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Metrics of the model's responses to the configured number of held-out prompts."""
        how = (self.tokenizer, self.config, self.session)
        if not (asked := answers.answerable(self.data.validation, *how)):
            return {}, {}
        return answers.answer(final, self.tokenizer, asked, *how[1:], directory), {}

    @property
    def counted(self) -> dict[str, int]:
        """The number of held-out conversations."""
        assert self.validation is not None
        return {"conversations": len(self.validation.numbers)}


def _limit(shape: PretrainedConfig) -> int:
    return int(getattr(shape.get_text_config(), "max_position_embeddings", None) or _LENGTH)


def _max_length(config: Config, shape: PretrainedConfig) -> int:
    """Maximum number of tokens of a conversation, limited by the model and the row."""
    data, limit = config.data, _limit(shape)
    for key, requested in (("max_length", data.max_length), ("block_size", data.block_size)):
        if requested != "auto" and requested > limit:
            raise ConfigError(
                f"{requested} tokens are more than the model's {limit} positions",
                where=f"data.{key}",
                next=f"set data.{key}={limit} or less",
            )
    row = limit if data.block_size == "auto" else data.block_size
    length = row if data.max_length == "auto" else data.max_length
    if length > row:
        raise ConfigError(
            f"conversations of {length} tokens do not fit into rows of {row}",
            where="data.max_length, data.block_size",
            next=f"set data.block_size={length}, or remove it",
        )
    return length


def _width(encoded: dict[str, Responses], shape: PretrainedConfig) -> int:
    """Tokens of a packed row, at least the longest conversation."""
    longest = max(int(each.lengths.max()) for each in encoded.values())
    return max(longest, min(ROW, _limit(shape), len(encoded["train"].ids) // ROWS))


def _encoded(
    some: Sequence[Conversation], template: Template, length: int, watch: Watch
) -> Responses:
    parted, rows = [], []
    for row, each in enumerate(some):
        messages = [message._asdict() for message in each.messages]
        texts = template.examples(messages, f"{each.path} row {each.number}")
        parted += texts
        rows += [row] * len(texts)
    with watch("tokenizing", len(parted)) as advance:
        return packs.encode_responses(template.tokenizer, parted, length, rows, advance)


def _report(data: Chats, encoded: dict[str, Responses], session: Session) -> None:
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
            what = f"{many(len(places), 'row')} with the whole response truncated"
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
