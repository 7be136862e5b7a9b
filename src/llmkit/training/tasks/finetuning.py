"""What tasks that fine-tune on rows in memory have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.schema import Config
from llmkit.data.examples import order
from llmkit.models import build
from llmkit.models import tokenizer as tokenizers
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Say
from llmkit.training.forecast.expectation import outline_of_task
from llmkit.training.tasks.task import Examples, Rows, Session, Task


class TokenRows(Examples, Protocol):
    """Rows as token ids."""

    @property
    def lengths(self) -> NDArray[Any]:
        """[rows], in tokens."""


class Reported(Protocol):
    """A data set with a report of what was found in it."""

    report: dict[str, Any]


E = TypeVar("E", bound=TokenRows)


@dataclass(frozen=True)
class Finetuning(Task, Generic[E]):
    """Training on rows that are tokenized before the first step."""

    session: Session
    asked: Config
    config: Config
    pretrained: Pretrained | None
    data: Any
    """A data set that is `Reported`."""
    tokenizer: PreTrainedTokenizerFast
    model_config: PretrainedConfig
    encoded: Mapping[str, E]
    """`train`, and `validation` and `test` if there are any."""

    command = "finetune"

    @classmethod
    def outline(
        cls, asked: Config, pretrained: Pretrained | None, session: Session
    ) -> dict[str, Any]:
        """The data report, lengths, and the size of the model."""
        task = cls.open(asked, pretrained, session)
        with torch.device("meta"):
            model = build.new_model(task.model_config, 0, cls.purpose)
        task.freeze(model)
        return outline_of_task(task, model, **task.sizes)

    @property
    def sizes(self) -> Mapping[str, Any]:
        """What the report of a dry run says of sizes."""
        config = self.config
        return {
            "max_length": config.data.max_length,
            "global_batch_size": config.train.global_batch_size,
        }

    def freeze(self, model: PreTrainedModel) -> None:
        """Freezes what is not trained, in a model without low-rank updates."""
        model.requires_grad_(self.lora is None)

    @property
    def examples(self) -> E:
        """The tokenized training rows."""
        return self.encoded["train"]

    @property
    def validation(self) -> E | None:
        """The tokenized held-out rows."""
        return self.encoded.get("validation")

    @property
    def tokens_per_example(self) -> int:
        """The mean length."""
        return max(1, int(self.examples.lengths.mean()))

    @property
    def data_report(self) -> Mapping[str, Any]:
        """What was found in the rows."""
        report: Mapping[str, Any] = self.data.report
        return report

    def rows_of_step(self, step: int, *, global_batch_size: int, limit: int | None) -> Rows:
        """Every row once per epoch, batched by similar length."""
        return order.rows_by_length(
            step,
            lengths=self.examples.lengths,
            seed=self.config.seed,
            global_batch_size=global_batch_size,
            limit=limit,
        )


def new_tokenizer(
    config: Config,
    texts: Sequence[str],
    train: Callable[[Sequence[str], int, str], PreTrainedTokenizerFast],
    of: str,
    say: Say,
) -> PreTrainedTokenizerFast:
    """A tokenizer trained on these texts, whose size is configured or chosen by their bytes."""
    size = config.tokenizer.vocab_size
    if size == "auto":
        size = tokenizers.auto_vocab_size(sum(len(text.encode()) for text in texts))
    made = train(texts, size, config.model.architecture)
    say(f"tokenizer: {len(made):,} tokens, byte-level BPE trained on {of}")
    return made
