"""A command with its config: checks all that it needs, loads its libraries, and runs it.

Everything that can be checked without the libraries is checked before they load.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.cli import faults
from llmkit.config.jobs import TASKS, command_of_keys
from llmkit.distributed import signals
from llmkit.errors import Interrupted, LlmkitError, Stopped

if TYPE_CHECKING:
    from llmkit.config.checks import Faults
    from llmkit.config.schema import Config
    from llmkit.data.readers.files import PipedInput, Sources
    from llmkit.reporting.console import Console
    from llmkit.storage.units import Workers


@dataclass(frozen=True)
class Request:
    """What to do: a command, the valid part of its config, and the faults of the rest."""

    command: str
    arguments: Sequence[str]
    """The command line that repeats it."""
    config: Config
    faults: Faults
    piped: PipedInput | None
    """What is read where no file is named."""
    dry_run: bool
    allow_code: bool
    workers: Workers | None = None
    """The share of this command in work that is divided into units."""

    def carry_out(
        self, console: Console, within: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> dict[str, Any] | None:
        """Runs the command, or with `dry_run` only checks it, and returns its result; None if
        everything was printed already. `within` is the context of everything after the libraries
        have loaded.

        Raises LlmkitError: of a stopped command with what was saved, of a dry run with what it
        found. Errors of the system and of libraries are not converted: `llmkit.cli.faults` does
        that.
        """
        self.config._arguments = tuple(self.arguments)
        with _stops(self.command, self.config):
            with console.waiting("checking the config and data…"):
                sources = self.checked(console)
            work = self._loaded(console)
            try:
                with within():
                    return work(self.config, sources, console)
            except LlmkitError as fault:
                fault.found = fault.found if self.dry_run else {}
                raise

    def checked(self, console: Console) -> Sources:
        """Makes all checks that need no libraries; returns the files of the config."""
        from llmkit.cli import prechecks
        from llmkit.data.readers.files import Sources

        prechecks.check_code(self.config, self.allow_code)
        pages = self.command == "clean" and self.config.clean.html
        sources = Sources(self.config, self.piped, pages)
        prechecks.check_early(self.command, self.config, sources, console, self.faults)
        return sources

    def _loaded(self, console: Console) -> _Work:
        """What runs the command, or only checks it, with its libraries and the user's own code."""
        signals.state.conversation = self.command == "chat"
        if self.config.model.code is not None:
            from llmkit.models import custom

            custom.run_model_code(self.config.model)
        saved = partial(_saved, self.command, self.config)
        with console.loading(), _without_collecting(), signals.importing(saved):
            run, check = _recipe(self.command)
        work = check if self.dry_run else run
        return work if self.workers is None else partial(work, workers=self.workers)


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
            found = run_directory.begun_run(config, command)
            steps = outputs.checkpoints(found / outputs.CHECKPOINTS) if found else []
            return f"checkpoint {steps[-1]}" if steps else faults.NOTHING_SAVED
        if command == "prepare":
            return "the parts that are complete, in the cache"
        if command == "clean":
            return "the units that are complete, in the output directory"
        if command == "merge":
            found = run_directory.begun_run(config, command)
            final = found / outputs.FINAL if found else None
            return (
                f"the merged model, {final}" if final and final.is_dir() else faults.NOTHING_SAVED
            )
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


_Work = Callable[..., dict[str, Any] | None]
"""Called with the config, its files and the console, and for divided work with `workers`."""


def _recipe(command: str) -> tuple[_Work, _Work]:
    """What runs a command, and what only checks all that it needs."""
    if command_of_keys(command) not in TASKS:
        raise ValueError(f"there is no command {command!r}")
    found = import_module(f"llmkit.commands.{command_of_keys(command)}")
    if command == "prepare":
        return found.prepare, found.outline_preparation
    return found.run, found.check


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Imports without the garbage collector, which finds nothing in them and takes a fifth of their
    time."""
    # Frozen again, the garbage of an earlier run would stay, as would that of another program.
    first = "torch" not in sys.modules and not signals.state.hosted
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
        if collects:
            gc.enable()
