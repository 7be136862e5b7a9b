"""`llmkit evaluate`: models + text or rows -> figures, and how they were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmkit import durable
from llmkit.config.schema import Config
from llmkit.data.prepare import data_report
from llmkit.evaluation import outputs, text
from llmkit.evaluation.subject import protocol, subjects
from llmkit.reporting.console import Console
from llmkit.training import runtime
from llmkit.training.signals import stop_signal


def run(config: Config, console: Console) -> dict[str, Any]:
    """Measures what the config names, writes what it asks for and returns the figures."""
    settings = config.evaluation
    outputs.check((settings.output, settings.log_samples, settings.per_token))
    with stop_signal() as stop, runtime.start(settings.precision, (), Path()) as processes:
        console.on_tick = stop.check
        measured = text.measure(
            config, list(subjects(config)), processes, console.watch, console.say
        )
        result = {"command": "evaluate", **text.result(config, measured)}
        if processes.is_main:
            if settings.per_token is not None:
                durable.replace_text(Path(settings.per_token), text.shaded(measured[0]))
            if settings.log_samples is not None:
                outputs.write_lines(Path(settings.log_samples), text.samples(measured))
            if settings.output is not None:
                outputs.write_result(Path(settings.output), result)
        return result


def check(config: Config, console: Console) -> dict[str, Any]:
    """Checks all that a run needs, without weights and without writing, and says what it found."""
    models = [
        {"model": each.name, "kind": each.kind, **protocol(each, config.evaluation).described()}
        for each in subjects(config)
    ]
    return {"command": "evaluate", "models": models, "data": data_report(config, console.watch)}
