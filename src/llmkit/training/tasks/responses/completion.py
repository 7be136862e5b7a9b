"""Completion: learn the responses to prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from transformers import PretrainedConfig, PreTrainedModel

from llmkit.config import jobs
from llmkit.config.schema import Config
from llmkit.data.examples import order, packs
from llmkit.data.examples.packs import Packs, Responses
from llmkit.data.records.conversation_sets import CHATS
from llmkit.data.records.conversations import Conversation
from llmkit.errors import ConfigError
from llmkit.evaluation.passages import response_passages
from llmkit.models import logits, packing
from llmkit.models.chat_template import Template
from llmkit.models.experts import balance
from llmkit.models.experts.balance import Balance
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Watch
from llmkit.reporting.held_out import HeldOut
from llmkit.training.tasks import defaults
from llmkit.training.tasks.causal import CausalLoss
from llmkit.training.tasks.responses import answers
from llmkit.training.tasks.responses.prompted import (
    Prompted,
    check_length,
    length_limit,
    open_responses,
    report_lengths,
    turns_of,
)
from llmkit.training.tasks.responses.responding import check_responses
from llmkit.training.tasks.task import Examples, Loss, Rows, Session, Sums

ROW, ROWS = 512, 40
"""Maximum tokens of a packed row unless a conversation is longer, and the minimum number of rows of
a small data set, so that it has enough steps."""


class CompletionLoss(CausalLoss):
    """Cross entropy of each response token, given those before it in its conversation."""

    def __init__(self, linear_head: bool = False, balance: Balance | None = None) -> None:
        super().__init__(n_bytes=0, linear_head=linear_head, balance=balance)

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """The metrics of the responses, without bits per byte."""
        found = super().figures(sums, predictions)
        return {name: value for name, value in found.items() if name != "bits_per_byte"}


@dataclass(frozen=True)
class Completion(Prompted[Packs]):
    """Fine-tuning on responses to prompts, or on the assistant's turns of conversations."""

    responses: Mapping[str, Responses]
    """Those that the rows of `encoded` hold."""

    @classmethod
    def open(cls, asked: Config, pretrained: Pretrained | None, session: Session) -> Self:
        """Read the conversations, apply the chat template, and tokenize them."""
        config = asked
        assert pretrained is not None
        data, template = open_responses(config, pretrained, session, CHATS)
        made = pretrained.config
        length = _max_length(config, made)
        parts = {"train": data.train, "validation": data.validation}
        responses = {
            name: _encoded(some, template, length, session.watch)
            for name, some in parts.items()
            if some
        }
        report_lengths(data, responses, session)
        check_responses(config, "validation" in responses)
        requested = config.data.block_size
        width = _width(responses, made) if requested == "auto" else requested
        config = config.changed(data=data.data.changed(max_length=length, block_size=width))
        known = (session, asked, config, pretrained, data, template.tokenizer, made)
        return cls(*known, {}, template, responses).arranged(width)

    @property
    def sizes(self) -> Mapping[str, Any]:
        """Also the tokens of a row."""
        return {**super().sizes, "block_size": self.config.data.block_size}

    def arranged(self, width: int | None) -> Self:
        """The task with packed rows of this width, or with one row per conversation, and with every
        training `auto` resolved for them."""
        pad = self.template.end_id  # neither scored nor attended to
        rows = {
            name: packs.alone(each, pad) if width is None else packs.packed(each, width, pad)
            for name, each in self.responses.items()
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
        return replace(self, config=self.config.changed(train=train), encoded=rows)

    @property
    def content(self) -> dict[str, str]:
        """The hashes of the tokenized conversations."""
        return {f"{name} data": each.fingerprint for name, each in self.responses.items()}

    def fitted(self, model: PreTrainedModel, begun: bool) -> Self:
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
        if self.examples.width is None:
            return super().rows_of_step(step, **how)
        n_examples, seed = len(self.examples), self.config.seed
        return order.rows_of_step(step, n_examples=n_examples, seed=seed, **how)

    def passages(self, final: PreTrainedModel) -> HeldOut:
        """The likelihood of the responses of each held-out conversation."""
        assert self.validation is not None
        content = self.responses["validation"].fingerprint
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


def _max_length(config: Config, shape: PretrainedConfig) -> int:
    """Maximum number of tokens of a conversation, limited by the model and the row."""
    data, limit = config.data, length_limit(shape)
    check_length(data.max_length, limit, "max_length")
    check_length(data.block_size, limit, "block_size")
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
    return max(longest, min(ROW, length_limit(shape), len(encoded["train"].ids) // ROWS))


def _encoded(
    some: Sequence[Conversation], template: Template, length: int, watch: Watch
) -> Responses:
    parted, rows = [], []
    for row, each in enumerate(some):
        texts = template.examples(*turns_of(each))
        parted += texts
        rows += [row] * len(texts)
    with watch("tokenizing", len(parted)) as advance:
        return packs.encode_responses(template.tokenizer, parted, length, rows, advance)
