"""What a command line asks for, done: config, checks that need no library, then the command.

The libraries are imported last, so that a wrong config or a missing file is reported at once.
"""

from __future__ import annotations

import gc
import importlib
import json as jsonlib
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit import arguments, faults
from llmkit.arguments import DATA, Arguments
from llmkit.distributed import signals
from llmkit.errors import Interrupted, LlmkitError, Stopped, UsageError
from llmkit.help import FIRST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmkit.config.checks import Faults
    from llmkit.config.load import Option
    from llmkit.config.schema import Config
    from llmkit.reporting.console import Console

Given = tuple[str, str, Any, int]
"""An option that stands for a key: its flag, the key, the value, and how many KEY=VALUE arguments
come before it."""


@dataclass(frozen=True)
class Request:
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
        """Does the work and prints its result; raises what `llmkit.faults` reports.

        Every warning is added to `warnings`.
        """
        given = arguments.parse(self.command, self.arguments)
        options = _with_data(self.command, self.options, given.data)
        self._check_given(given, options)
        from llmkit.config.checks import Faults

        wrong = Faults(self.command)
        config = self._config(given, options, wrong)
        if config is None:
            return
        from llmkit import prechecks
        from llmkit.config import objectives
        from llmkit.reporting.console import Console

        console = Console(self.json, self.quiet, warnings)
        if given.data:
            console.say(f"data: {', '.join(given.data)} (as {DATA[self.command][0]})")
        with _stops(self.command, config):
            prechecks.check_code(config, self.allow_code)
            prechecks.check(self.command, config, console, wrong)
            self._work(objectives.recipe(self.command, config), config, console)

    def _check_given(self, given: Arguments, options: Sequence[Option]) -> None:
        """Raises UsageError where nothing is given."""
        if not (given.config or given.overrides or options or self.print_config):
            raise UsageError(
                f"`llmkit {self.command}` needs {_NEEDS.get(self.command, 'a model and input')}",
                next=f"try `{FIRST[self.command]}`, or give a CONFIG; "
                f"`llmkit {self.command} --help` lists the options",
            )

    def _config(self, given: Arguments, options: Sequence[Option], wrong: Faults) -> Config | None:
        """The config as far as it is valid, or None where it was only to be printed."""
        from llmkit.config.load import as_yaml, read

        resolved = read(self.command, given.config, given.overrides, options, wrong)
        if not self.print_config:
            return resolved.config
        wrong.check()
        values = jsonlib.loads(resolved.config.model_dump_json())
        shown = jsonlib.dumps({"config": values, "sources": dict(resolved.sources)})
        _print(shown if self.json else as_yaml(resolved.config, resolved.sources))
        return None

    def _work(self, name: str, config: Config, console: Console) -> None:
        if self.verbose:
            _let_libraries_speak()
        signals.state.conversation = self.command == "chat"
        if config.model.code is not None:
            from llmkit.models import custom

            custom.take_in(config.model)
        with console.loading():
            recipe = _imported(name)
        work = recipe.check if self.dry_run else recipe.run
        try:
            result: dict[str, Any] | None = work(config, console)
        except LlmkitError as fault:
            fault.found = fault.found if self.dry_run else {}
            raise
        if result is not None:
            with faults.of_stdout():
                console.result(result)


def _let_libraries_speak() -> None:
    """Shows on stderr what llmkit and the libraries log."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info")


_NEEDS = {"pretrain": "text", "finetune": "labelled rows, or prompts with responses"}


def _with_data(command: str, options: Sequence[Given], data: Sequence[str]) -> list[Option]:
    """The options, and the data that was given without one."""
    from llmkit.config.load import Option

    given = [Option(*each) for each in options]
    if not data:
        return given
    flag, key = DATA[command]
    same = [option for option in given if option.key == key]
    named = [name for option in same for name in _listed(option.value)] + list(data)
    rest = [option for option in given if option.key != key]
    if command != "generate":
        return [*rest, Option(flag, key, named)]
    if len(named) > 1:
        raise UsageError("prompts come from one file", where=", ".join(named), next="name one")
    return [*rest, Option(flag, key, named[0])]


def _listed(value: str | int | Sequence[str]) -> list[str]:
    return [str(value)] if isinstance(value, str | int) else list(value)


@contextmanager
def _stops(command: str, config: Config) -> Iterator[None]:
    """Says in the fault of a command that was stopped what it has saved."""
    try:
        yield
    except (KeyboardInterrupt, faults.Ended) as fault:
        raise faults.stopped(fault, kept=_saved(command, config)) from fault
    except (Interrupted, Stopped) as fault:
        fault.kept = fault.kept or _saved(command, config)
        raise


def _saved(command: str, config: Config) -> str:
    """What stands on the disk of a command that was stopped."""
    from llmkit.inference import output
    from llmkit.reporting import unfinished
    from llmkit.training import directory

    try:
        if command in ("pretrain", "finetune"):
            found = directory.locate(config, command)
            steps = sorted((found / "checkpoints").glob("step-*"))
            return f"checkpoint {steps[-1]}" if steps else faults.NOTHING_SAVED
        if command == "predict" and config.predict.output is not None:
            parts = unfinished.parts_of(Path(config.predict.output))
            return f"the predictions so far, in {parts}" if parts.exists() else faults.NOTHING_SAVED
        if command == "generate" and config.generation.output_file is not None:
            results = Path(config.generation.output_file)
            return (
                f"the samples so far, in {results}"
                if output.lines(results)
                else faults.NOTHING_SAVED
            )
    except (OSError, LlmkitError):
        pass
    return faults.NOTHING_SAVED


def _imported(name: str) -> Any:
    """The module of a recipe. What comes in with it is no garbage, and looking for some each time
    that as much is new would take a fifth of the time."""
    module = f"llmkit.commands.{name}"
    if module in sys.modules:  # frozen again, the garbage of an earlier run would stay
        return sys.modules[module]
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def _print(text: str) -> None:
    with faults.of_stdout():
        print(text.rstrip("\n"), flush=True)
