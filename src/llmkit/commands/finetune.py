"""`llmkit finetune`: rows -> classifier, tagger, model that responds or prefers, or encoder-decoder
model."""

from __future__ import annotations

from typing import Any

from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.export import description
from llmkit.models.pretrained import Pretrained
from llmkit.reporting.console import Console
from llmkit.training import run as training
from llmkit.training.tasks.labels.answering import Answering
from llmkit.training.tasks.labels.classification import Classification
from llmkit.training.tasks.labels.tagging import Tagging
from llmkit.training.tasks.preference.preference import PreferenceTuning
from llmkit.training.tasks.responses.completion import Completion
from llmkit.training.tasks.responses.sequence_to_sequence import SequenceToSequence
from llmkit.training.tasks.task import Task

COMMAND = "finetune"
_TASKS: dict[str, type[Task]] = {
    "auto": Classification,
    "classification": Classification,
    "token_classification": Tagging,
    "question_answering": Answering,
    "completion": Completion,
    "sequence_to_sequence": SequenceToSequence,
    "preference": PreferenceTuning,
}


def run(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Trains the model, or resumes training it, and returns the results of the run."""
    figures, repeats = training.train_task(COMMAND, _task, config, sources, console)
    description.describe_run(figures, console, only_missing=repeats)
    return figures


def check(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Checks everything that a run needs, without weights or writing, and returns a report."""
    return training.check_task(COMMAND, _task, config, sources, console)


def _task(config: Config, pretrained: Pretrained | None) -> type[Task]:
    return _TASKS[config.train.objective]
