"""`llmkit pretrain`: raw text -> language model, causal or masked."""

from __future__ import annotations

from typing import Any

from llmkit.config.schema import Config
from llmkit.data.cleaning.passes.glance import notable_faults
from llmkit.data.readers.files import Sources
from llmkit.distributed.launcher import is_main_process
from llmkit.export import description
from llmkit.models.pretrained import Pretrained
from llmkit.reporting.console import Console
from llmkit.storage.units import ALONE, Workers
from llmkit.training import run as training
from llmkit.training.tasks import objectives, preparation
from llmkit.training.tasks.causal import Causal
from llmkit.training.tasks.masked import Masked
from llmkit.training.tasks.next_sentence import NextSentence
from llmkit.training.tasks.pretraining import Pretraining
from llmkit.training.tasks.span_corruption import SpanCorruption

COMMAND = "pretrain"


def run(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Trains the model, or resumes training it, and returns the results of the run."""
    _warn_of_faults(config, sources, console)
    figures, repeats = training.train_task(COMMAND, _task, config, sources, console)
    description.describe_run(figures, console, only_missing=repeats)
    return figures


def check(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Checks everything that a run needs, without weights or writing, and returns a report."""
    _warn_of_faults(config, sources, console)
    return training.check_task(COMMAND, _task, config, sources, console)


def _warn_of_faults(config: Config, sources: Sources, console: Console) -> None:
    """Names what `llmkit clean` would mend in the text."""
    if is_main_process():
        for fault in notable_faults(config, sources):
            console.warn(fault)


def prepare(
    config: Config, sources: Sources, console: Console, workers: Workers = ALONE
) -> dict[str, Any]:
    """`llmkit prepare`: makes the token files of a run ahead, and returns what they hold."""
    return preparation.prepare_text(_task, config, sources, console, workers)


def outline_preparation(
    config: Config, sources: Sources, console: Console, workers: Workers = ALONE
) -> dict[str, Any]:
    """Checks what `prepare` needs, and estimates what it will take."""
    return preparation.check_preparation(_task, config, sources, console, workers)


def _task(config: Config, pretrained: Pretrained | None) -> type[Pretraining]:
    masked = NextSentence if config.train.next_sentence else Masked
    tasks: dict[str, type[Pretraining]] = {"masked": masked, "span_corruption": SpanCorruption}
    return tasks.get(objectives.objective_of(config, pretrained), Causal)
