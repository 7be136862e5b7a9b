"""What a run must know of whatever is learned: a task, its examples, and its loss.

A loss gives sums, never means: a mean of means is wrong as soon as batches differ in size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.schema import Config, LoraConfig
from llmkit.distributed.processes import Processes
from llmkit.distributed.signals import StopSignal
from llmkit.models.build import Purpose
from llmkit.models.moe import Balance
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Watch
from llmkit.reporting.console import Console

if TYPE_CHECKING:
    from llmkit.data.readers.files import Sources
    from llmkit.data.text.fingerprints import Fingerprints


Batch = dict[str, Tensor]
"""Tensors that a model takes, its targets, where few places are predicted their numbers, and for
rows of tokens with padding `real`, a bool that is False there."""
Rows = Sequence[int] | NDArray[np.int64]
Sums = Mapping[str, NDArray[np.float64]]
"""What a loss's sums come to over a whole set and all processes."""

IGNORED = -100
"""Target of a position that is not predicted."""


class Examples(Protocol):
    """A set of training or validation examples, in memory or mapped from a file."""

    def __len__(self) -> int:
        """Number of examples."""

    def batch(self, rows: Rows) -> Batch:
        """The examples of these rows as tensors; row -1 is one in which nothing is predicted."""

    def count(self, rows: Rows) -> int:
        """Predictions in these rows."""

    def longest_first(self) -> Rows:
        """All rows, such that neighbours need little padding and the first the most memory."""


class LabelledExamples(Examples, Protocol):
    """Examples with a class each."""

    targets: NDArray[Any]


class Loss(ABC):
    """What is minimised, and the figures that people read."""

    balance: Balance | None = None
    """The load-balancing loss of a mixture of experts."""
    compilable: tuple[nn.Module, ...] = ()
    """Modules of the loss itself that are worth compiling."""

    def weight(self, examples: Examples, rows: Rows) -> float:
        """What the objective summed over these rows is divided by: each prediction weighs 1."""
        return examples.count(rows)

    @abstractmethod
    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`objective` to minimise and `loss` to report, each summed over the batch's predictions,
        and whatever else `figures` needs, of any shape."""

    @abstractmethod
    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """The figures of a whole set from its sums."""

    def routed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The tokens routed to each expert, where there is a `balance`."""
        raise NotImplementedError


def summed_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Cross entropy in nats, summed over the labels that are not IGNORED."""
    return functional.cross_entropy(
        logits,
        labels,
        weight=weights,
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=smoothing,
    )


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the model is."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


@dataclass(frozen=True)
class Session:
    """What a task works with besides its config."""

    sources: Sources
    processes: Processes
    console: Console
    stop: StopSignal

    @property
    def watch(self) -> Watch:
        """Progress of long work, which a signal ends."""
        return self.stop.watched(self.console.watch)


class Task(ABC):
    """Something to learn, opened: all that a run needs but weights is there, and checked.

    A new task is a subclass in a file of its own, chosen by a command.
    """

    command: ClassVar[str]
    unit: ClassVar[str]
    """What a prediction is called in the figures."""
    purpose: ClassVar[Purpose]
    """What transformers loads the model as."""

    session: Session
    asked: Config
    """The config as it was asked for."""
    config: Config
    """The same with all resolved that follows from the data and the model config."""
    tokenizer: PreTrainedTokenizerFast
    pretrained: Pretrained | None
    """The model that is named, if one is."""

    @classmethod
    @abstractmethod
    def open(cls, asked: Config, pretrained: Pretrained | None, session: Session) -> Self:
        """Reads the data and checks all that can be wrong before weights are made or loaded."""

    @classmethod
    @abstractmethod
    def outline(
        cls, asked: Config, pretrained: Pretrained | None, session: Session
    ) -> dict[str, Any]:
        """What a dry run reports: the data, and the size of the model; writes nothing."""

    @property
    @abstractmethod
    def content(self) -> Mapping[str, str]:
        """Content hashes by what they are of."""

    @property
    @abstractmethod
    def examples(self) -> Examples:
        """What is trained on."""

    @property
    @abstractmethod
    def validation(self) -> Examples | None:
        """What is measured while training."""

    @property
    @abstractmethod
    def tokens_per_example(self) -> int:
        """Tokens of an example of middling length."""

    @abstractmethod
    def begin(self) -> PreTrainedModel:
        """The model with the weights that a new run starts with."""

    @abstractmethod
    def losses(self, model: PreTrainedModel) -> Callable[[Examples | None], Loss]:
        """Makes the loss that measures these validation examples, or some of them."""

    @abstractmethod
    def rows_of_step(self, step: int, *, global_batch_size: int, limit: int | None) -> Rows:
        """The rows of the examples that form a step: a pure function."""

    @abstractmethod
    def seen(self) -> Fingerprints:
        """The fingerprints of what is trained on."""

    @abstractmethod
    def results(self, loss: Loss, figures: Mapping[str, Any]) -> dict[str, Any]:
        """What a finished run reports besides its figures: measurements of the finished model and
        baselines; warns where they show that little was learned."""

    @property
    def data_report(self) -> Mapping[str, Any]:
        """What was found in labelled rows, for `run.json`; text has no such report."""
        return {}

    @property
    def from_scratch(self) -> bool:
        """Whether the weights of a new run are random."""
        return self.pretrained is None

    @property
    def lora(self) -> LoraConfig | None:
        """The low-rank updates that are trained in place of the weights."""
        settings = self.config.model.lora
        return settings if settings.r is not None else None

    def equip(self, model: PreTrainedModel, begun: bool) -> PreTrainedModel:
        """The model made ready to be trained; `begun` says that `begin` made it, and not a
        checkpoint."""
        return model

    def head(self, model: PreTrainedModel) -> Collection[str]:
        """The weights that are trained beside low-rank updates."""
        return ()

    def fitted(self, model: PreTrainedModel) -> Self:
        """The task in the form that this model can learn it in."""
        return self

    @property
    def measured_first(self) -> bool:
        """Whether the model is validated before it is trained."""
        return False

    def progress(
        self, step: int, *, global_batch_size: int, limit: int | None
    ) -> Mapping[str, float]:
        """What else the metrics hold of the data that a step has reached."""
        return {}

    def samples(self, model: PreTrainedModel, loss: Loss) -> Mapping[str, Any]:
        """A few samples of the model, shown after a validation, and noted in metrics.jsonl."""
        return {}
