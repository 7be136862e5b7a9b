"""The interfaces of a task, its examples and its loss.

A loss returns sums, never means: a mean of means is wrong if batches differ in size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
from llmkit.models.experts.balance import Balance
from llmkit.models.pretrained import Pretrained
from llmkit.progress import Watch
from llmkit.reporting.console import Console

if TYPE_CHECKING:
    from llmkit.data.readers.files import Sources
    from llmkit.data.text.fingerprints import Fingerprints


Batch = dict[str, Tensor]
"""Model inputs and targets; if few positions are predicted, their indices; and for rows of tokens
with padding `real`, a bool that is False at padding."""
Rows = Sequence[int] | NDArray[np.int64]
Sums = Mapping[str, NDArray[np.float64]]
"""The sums of a loss over a whole set and all processes."""

IGNORED = -100
"""Target of a position without a prediction."""


class Examples(Protocol):
    """A set of training or validation examples, in memory or mapped from a file."""

    def __len__(self) -> int:
        """Number of examples."""

    def batch(self, rows: Rows) -> Batch:
        """The examples of these rows as tensors; row -1 is an example without predictions."""

    def count(self, rows: Rows) -> int:
        """Number of predictions in these rows."""

    def longest_first(self) -> Rows:
        """All rows, ordered so that neighbours need little padding and the first most memory."""


class LabelledExamples(Examples, Protocol):
    """Examples with labels that are classes."""

    def labels(self, rows: Rows) -> NDArray[Any]:
        """The labels that are predicted in these rows; none for row -1."""


class Loss(ABC):
    """The training objective and the reported metrics."""

    balance: Balance | None = None
    """The load-balancing loss of a mixture of experts."""
    compilable: tuple[nn.Module, ...] = ()
    """Modules of the loss that are worth compiling."""

    def weight(self, examples: Examples, rows: Rows) -> float:
        """The divisor of the objective summed over these rows: by default the predictions."""
        return examples.count(rows)

    def weights(self, examples: Examples, rows: Rows) -> tuple[float, ...]:
        """The divisor of each part of the objective: by default it has one part."""
        return (self.weight(examples, rows),)

    @abstractmethod
    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`objective` to minimise, one number or [parts], and `loss` to report, summed over the
        batch's predictions, and anything else that `figures` needs, of any shape."""

    @abstractmethod
    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """The metrics of a whole set from its sums."""

    def routed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The number of tokens routed to each expert; empty without a `balance`."""
        return torch.zeros(0)


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
    """The batch on the model's device."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


@dataclass(frozen=True)
class Session:
    """The environment of a task: processes, console, sources and stop signal."""

    sources: Sources
    processes: Processes
    console: Console
    stop: StopSignal

    @property
    def watch(self) -> Watch:
        """Shows the progress of long work, which a signal ends."""
        return self.stop.watched(self.console.watch)


class Task(ABC):
    """A training task with its data opened and checked; only weights are missing.

    A new task is a subclass in a separate file, chosen by a command.
    """

    command: ClassVar[str]
    unit: ClassVar[str]
    """The unit of predictions in the metrics."""
    purpose: ClassVar[Purpose]
    """The class with which transformers loads the model."""
    undivided: ClassVar[str | None] = None
    """What the task is called where each process must hold the whole model."""

    session: Session
    asked: Config
    """The config as given by the user."""
    config: Config
    """The config with everything resolved that depends on the data and the model config."""
    tokenizer: PreTrainedTokenizerFast
    pretrained: Pretrained | None
    """The given model, if any."""

    @classmethod
    @abstractmethod
    def open(cls, asked: Config, pretrained: Pretrained | None, session: Session) -> Self:
        """Read the data, and check everything that can be checked without weights."""

    @classmethod
    @abstractmethod
    def outline(
        cls, asked: Config, pretrained: Pretrained | None, session: Session
    ) -> dict[str, Any]:
        """The report of a dry run: the data and the size of the model; writes nothing."""

    @property
    @abstractmethod
    def content(self) -> Mapping[str, str]:
        """Content hashes by description."""

    @property
    @abstractmethod
    def examples(self) -> Examples:
        """The training examples."""

    @property
    @abstractmethod
    def validation(self) -> Examples | None:
        """The validation examples."""

    @property
    @abstractmethod
    def tokens_per_example(self) -> int:
        """Typical number of tokens of an example."""

    @abstractmethod
    def begin(self) -> PreTrainedModel:
        """The model with the initial weights of a new run."""

    @abstractmethod
    def losses(self, model: PreTrainedModel) -> Callable[[Examples | None], Loss]:
        """Makes the loss for these validation examples, or for a subset of them."""

    @abstractmethod
    def rows_of_step(self, step: int, *, global_batch_size: int, limit: int | None) -> Rows:
        """The rows of a step: a pure function."""

    @abstractmethod
    def seen(self) -> Fingerprints:
        """The fingerprints of the training data."""

    @abstractmethod
    def results(
        self, loss: Loss, validation: Examples | None, figures: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Additional results of a finished run: measurements of the final model and baselines;
        warns if they show that little was learned. `validation` are the held-out examples that
        validations have measured: all, or a subset."""

    @property
    def data_report(self) -> Mapping[str, Any]:
        """What was found in the data, for `run.json`."""
        return {}

    @property
    def from_scratch(self) -> bool:
        """Whether the weights of a new run are random."""
        return self.pretrained is None

    @property
    def lora(self) -> LoraConfig | None:
        """The LoRA config, if low-rank updates are trained instead of the weights."""
        settings = self.config.model.lora
        return settings if settings.r is not None else None

    def equip(self, model: PreTrainedModel, begun: bool) -> PreTrainedModel:
        """Prepare the model for training; `begun` says that it comes from `begin` rather than from
        a checkpoint."""
        return model

    def head(self, model: PreTrainedModel) -> Collection[str]:
        """The weights that are trained in addition to LoRA."""
        return ()

    def accompany(self, model: PreTrainedModel, directory: Path) -> None:  # noqa: B027
        """Write more files of the finished model into its directory, which is not visible yet."""

    def keep(self, directory: Path) -> None:  # noqa: B027
        """Write what a resumed run reads instead of computing it again into the run directory."""

    def fitted(self, model: PreTrainedModel, begun: bool) -> Self:
        """The task adapted to this model; `begun` says that the weights are those of `begin`, and
        not of a checkpoint."""
        return self

    @property
    def measured_first(self) -> bool:
        """Whether the model is validated before training."""
        return False

    def progress(
        self, step: int, *, global_batch_size: int, limit: int | None
    ) -> Mapping[str, float]:
        """More values of a step for metrics.jsonl."""
        return {}

    def samples(self, model: PreTrainedModel, loss: Loss, step: int) -> Mapping[str, Any]:
        """A few samples of the model, shown after the validation of a step and recorded in
        metrics.jsonl."""
        return {}
