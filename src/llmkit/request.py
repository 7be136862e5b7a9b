"""What a command line asks for, done: config, checks that need no library, then the command.

The libraries are imported last, so that a wrong config or a missing file is told at once.
"""

from __future__ import annotations

import gc
import importlib
import json as jsonlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit import faults
from llmkit.config import objectives, render
from llmkit.config.load import Option, load
from llmkit.config.schema import Config
from llmkit.errors import UsageError

FILES_OF = {
    "pretrain": ("train_files", "validation_files"),
    "finetune": ("train_files", "validation_files", "test_files"),
    "predict": ("test_files",),
    "evaluate": ("test_files",),
}
"""Keys of the data section whose files a command reads."""


@dataclass(frozen=True)
class Request:
    """A command with its arguments and options."""

    command: str
    arguments: Sequence[str]
    options: Sequence[Option]
    json: bool
    quiet: bool
    dry_run: bool
    print_config: bool
    allow_code: bool

    def carry_out(self) -> None:
        """Does the work and prints its result; raises what `llmkit.faults` tells."""
        path, overrides = _split(self.arguments)
        if not (path or overrides or self.options or self.print_config):
            raise UsageError(
                f"`llmkit {self.command}` was given nothing to work on",
                next=f"try `llmkit {self.command} --text corpus.txt`, or give a CONFIG",
            )
        resolved = load(self.command, path, overrides, self.options)
        config = resolved.config
        if self.print_config:
            values = jsonlib.loads(config.model_dump_json())
            shown = jsonlib.dumps({"config": values, "sources": dict(resolved.sources)})
            _print(shown if self.json else render.as_yaml(config, resolved.sources))
            return
        if config.model.code is not None:
            from llmkit.models import custom

            custom.take_in(config.model, self.allow_code)
        name = objectives.recipe(self.command, config)
        _check_files(self.command, config)
        from llmkit.reporting.console import Console

        console = Console(json=self.json, quiet=self.quiet)
        recipe = _imported(name)
        work = recipe.check if self.dry_run else recipe.run
        result: dict[str, Any] | None = work(config, console)
        if result is not None:
            with faults.of_stdout():
                console.result(result)


def _split(arguments: Sequence[str]) -> tuple[Path | None, Sequence[str]]:
    """CONFIG, if the first argument is no KEY=VALUE, and the overrides."""
    if arguments and not _is_override(arguments[0]):
        path, overrides = Path(arguments[0]), arguments[1:]
    else:
        path, overrides = None, arguments
    for extra in overrides:
        if not _is_override(extra):
            raise UsageError(
                f"`{extra}` is neither CONFIG, which comes first, nor KEY=VALUE",
                next="text files are given as `--text A --text B`, or as a quoted glob",
            )
    return path, overrides


def _is_override(argument: str) -> bool:
    name, equals, _ = argument.partition("=")
    return bool(equals) and "/" not in name and os.sep not in name


def _check_files(command: str, config: Config) -> None:
    """Raises InputNotFound for files that the command would read and that are not there."""
    from llmkit.data import sources

    named = {f"data.{key}": getattr(config.data, key) for key in FILES_OF.get(command, ())}
    if command == "pretrain":
        for name, domain in config.data.mixture.items():
            named[f"data.mixture.{name}.files"] = domain.files
            named[f"data.mixture.{name}.validation_files"] = domain.validation_files
    for key, entries in named.items():
        if entries:
            sources.find(entries, key)


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
