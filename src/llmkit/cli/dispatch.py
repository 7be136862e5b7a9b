"""Carries out a command: reads the config, runs the early checks, then calls the command.

The libraries load last, so that a wrong config or a missing file is reported at once.
"""

from __future__ import annotations

import gc
import json as jsonlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.cli import arguments, faults
from llmkit.cli.arguments import DATA_OPTIONS, Arguments
from llmkit.cli.help import FIRST
from llmkit.distributed import signals
from llmkit.errors import Interrupted, LlmkitError, Stopped, UsageError

if TYPE_CHECKING:
    from llmkit.config.checks import Faults
    from llmkit.config.load import GivenOption
    from llmkit.config.schema import Config
    from llmkit.data.readers.files import Sources
    from llmkit.reporting.console import Console


Given = tuple[str, str, Any, int]
"""An option that sets a config key: its flag, the key, the value, and how many KEY=VALUE arguments
come before it."""


@dataclass(frozen=True)
class Invocation:
    """A command with its arguments and options."""

    command: str
    arguments: Sequence[str]
    options: Sequence[Given]
    json: bool
    quiet: bool
    verbose: bool
    dry_run: bool
    print_config: bool
    allow_code: bool

    def carry_out(self, warnings: list[str]) -> None:
        """Runs the command and prints its result; raises what `llmkit.cli.faults` reports.

        Every warning is added to `warnings`.
        """
        _set_logs(self.verbose)
        given = arguments.parse_arguments(self.command, self.arguments)
        options = _with_data(self.command, self.options, given.data)
        self._check_given(given, options)
        from llmkit.config.checks import Faults

        wrong = Faults(self.command)
        config = self._config(given, options, wrong)
        if config is None:
            return
        from llmkit.cli import prechecks
        from llmkit.config import checks
        from llmkit.data.readers.files import Sources
        from llmkit.reporting.console import Console

        console = Console(self.json, self.quiet, warnings)
        if given.data:
            console.say(f"data: {', '.join(given.data)} (as {DATA_OPTIONS[self.command][0]})")
        with _stops(self.command, config):
            prechecks.check_code(config, self.allow_code)
            sources = Sources(config)
            prechecks.check_early(self.command, config, sources, console, wrong)
            checks.check_objective(self.command, config)
            work = self._loaded(config, console)
            try:
                result = work(config, sources, console)
            except LlmkitError as fault:
                fault.found = fault.found if self.dry_run else {}
                raise
            if result is not None:
                with faults.of_stdout():
                    console.result(result)

    def _check_given(self, given: Arguments, options: Sequence[GivenOption]) -> None:
        """Raises UsageError for a command without arguments."""
        if not (given.config or given.overrides or options or self.print_config):
            raise UsageError(
                f"`llmkit {self.command}` needs {_NEEDS.get(self.command, 'a model and input')}",
                next=f"try `{FIRST[self.command]}`, or pass a CONFIG; "
                f"`llmkit {self.command} --help` lists the options",
            )

    def _config(
        self, given: Arguments, options: Sequence[GivenOption], wrong: Faults
    ) -> Config | None:
        """The valid part of the config, or None after `--print-config`."""
        from llmkit.config.load import as_yaml, read_config

        resolved = read_config(self.command, given.config, given.overrides, options, wrong)
        if not self.print_config:
            return resolved.config
        wrong.check()
        values = jsonlib.loads(resolved.config.model_dump_json())
        shown = jsonlib.dumps({"config": values, "sources": dict(resolved.sources)})
        _print(shown if self.json else as_yaml(resolved.config, resolved.sources))
        return None

    def _loaded(self, config: Config, console: Console) -> _Work:
        """What does the command, or only checks it, with its libraries and the user's own code."""
        signals.state.conversation = self.command == "chat"
        if config.model.code is not None:
            from llmkit.models import custom

            custom.run_model_code(config.model)
        with console.loading(), _without_collecting():
            run, check = _recipe(self.command)
        return check if self.dry_run else run


def _set_logs(verbose: bool) -> None:
    """Shows the logs of llmkit and its libraries on stderr, or only the errors of transformers."""
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    # Both are read when the libraries are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if verbose else "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not verbose and (transformers := sys.modules.get("transformers")) is not None:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()


_NEEDS = {"pretrain": "text", "finetune": "labelled rows, or prompts with responses"}


def _with_data(command: str, options: Sequence[Given], data: Sequence[str]) -> list[GivenOption]:
    """The options, with data that was passed without one added."""
    from llmkit.config.load import GivenOption

    given = [GivenOption(*each) for each in options]
    if not data:
        return given
    flag, key = DATA_OPTIONS[command]
    same = [option for option in given if option.key == key]
    named = [name for option in same for name in _listed(option.value)] + list(data)
    rest = [option for option in given if option.key != key]
    if command != "generate":
        return [*rest, GivenOption(flag, key, named)]
    if len(named) > 1:
        raise UsageError(
            "only one file of prompts is read", where=", ".join(named), next="pass one"
        )
    return [*rest, GivenOption(flag, key, named[0])]


def _listed(value: str | int | Sequence[str]) -> list[str]:
    return [str(value)] if isinstance(value, str | int) else list(value)


@contextmanager
def _stops(command: str, config: Config) -> Iterator[None]:
    """Adds what was saved to the error of a command that was stopped."""
    try:
        yield
    except (KeyboardInterrupt, faults.Ended) as fault:
        raise faults.stopped(fault, kept=_saved(command, config)) from fault
    except (Interrupted, Stopped) as fault:
        fault.kept = fault.kept or _saved(command, config)
        raise


def _saved(command: str, config: Config) -> str:
    """What a stopped command has saved on disk."""
    from llmkit.storage import outputs, resumable
    from llmkit.training import run_directory

    try:
        if command in ("pretrain", "finetune"):
            found = run_directory.locate_run(config, command)
            steps = outputs.checkpoints(found / outputs.CHECKPOINTS)
            return f"checkpoint {steps[-1]}" if steps else faults.NOTHING_SAVED
        if command == "predict" and config.predict.output is not None:
            parts = resumable.parts_of(Path(config.predict.output))
            return f"the predictions so far, in {parts}" if parts.exists() else faults.NOTHING_SAVED
        if command == "generate" and config.generation.output_file is not None:
            results = Path(config.generation.output_file)
            return (
                f"the samples so far, in {results}"
                if resumable.count_lines(results)
                else faults.NOTHING_SAVED
            )
    except (OSError, LlmkitError):
        pass
    return faults.NOTHING_SAVED


_Work = Callable[["Config", "Sources", "Console"], dict[str, Any] | None]


def _recipe(command: str) -> tuple[_Work, _Work]:
    """What runs a command, and what only checks all that it needs."""
    match command:
        case "pretrain":
            from llmkit.commands import pretrain

            return pretrain.run, pretrain.check
        case "finetune":
            from llmkit.commands import finetune

            return finetune.run, finetune.check
        case "predict":
            from llmkit.commands import predict

            return predict.run, predict.check
        case "generate":
            from llmkit.commands import generate

            return generate.run, generate.check
        case "chat":
            from llmkit.commands import chat

            return chat.run, chat.check
        case _:
            from llmkit.commands import evaluate

            return evaluate.run, evaluate.check


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Imports without the garbage collector, which finds nothing in them and takes a fifth of their
    time."""
    first = "torch" not in sys.modules  # frozen again, the garbage of an earlier run would stay
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
        gc.enable()


def _print(text: str) -> None:
    with faults.of_stdout():
        print(text.rstrip("\n"), flush=True)
