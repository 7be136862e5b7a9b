"""A command line that Typer has parsed: reads its config, carries it out and prints the result."""

from __future__ import annotations

import json as jsonlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmkit.cli import arguments, faults
from llmkit.cli.arguments import DATA_OPTIONS, Arguments
from llmkit.cli.help import FIRST
from llmkit.cli.options import switches
from llmkit.errors import UsageError

if TYPE_CHECKING:
    from llmkit.config.checks import Faults
    from llmkit.config.given import GivenOption
    from llmkit.config.schema import Config
    from llmkit.reporting.console import Console


Given = tuple[str, str, Any, int]
"""An option that sets a config key: its flag, the key, the value, and how many KEY=VALUE arguments
come before it."""


@dataclass(frozen=True)
class Invocation:
    """A command with its arguments and options."""

    command: str
    line: Sequence[str]
    """The whole command line, as it was typed."""
    arguments: Sequence[str]
    options: Sequence[Given]
    json: bool
    quiet: bool
    verbose: bool
    dry_run: bool
    print_config: bool
    allow_code: bool
    sweep: bool = False
    train: bool = False
    print: bool = False
    slurm: bool = False
    workers: int | None = None
    worker: int | None = None
    of: int | None = None
    ray: str | None = None

    def carry_out(self, warnings: list[str]) -> None:
        """Runs the command and prints its result; raises what `llmkit.cli.faults` reports.

        Every warning is added to `warnings`.
        """
        _set_logs(self.verbose)
        given = arguments.parse_arguments(self.command, self.arguments)
        options = _with_data(self.command, self.options, given.data)
        self._check_given(given, options)
        from llmkit.reporting.console import Console

        console = Console(self.json, self.quiet, warnings)
        several = self.sweep or self.train
        result = (self._several if several else self._once)(given, options, console)
        if result is not None:
            with faults.of_stdout():
                console.result(result)

    def _once(
        self, given: Arguments, options: Sequence[GivenOption], console: Console
    ) -> dict[str, Any] | None:
        """The result of the command; None where all is printed."""
        from llmkit.cli.request import Request
        from llmkit.config.checks import Faults
        from llmkit.data.readers.files import standard_input

        wrong = Faults(self.command)
        config = self._config(given, options, wrong)
        if config is None:
            return None
        self._say_data(given, console)
        request = Request(
            self.command, self.line, config, wrong, standard_input(), self.dry_run, self.allow_code
        )
        if self._is_shared:
            from llmkit.cli import sharing

            share = sharing.worker_share(self.workers, self.worker, self.of, self.ray)
            request = replace(request, workers=share)
            if self.ray is not None and not self.dry_run:
                request.checked(console)
                sharing.run_on_ray(self.ray, self.line, self.of or 1, console)
        return request.carry_out(console)

    @property
    def _is_shared(self) -> bool:
        """Whether the work of the command is divided into units."""
        return any(each.name == "workers" for each in switches(self.command))

    def _several(
        self, given: Arguments, options: Sequence[GivenOption], console: Console
    ) -> dict[str, Any] | None:
        """The same for `--sweep`, and for `--train`."""
        from llmkit.cli.sweep import runs
        from llmkit.cli.sweep.plan import CommandLine

        self._say_data(given, console)
        shared = [
            f"--{name.replace('_', '-')}"
            for name in ("quiet", "verbose", "allow_code")
            if getattr(self, name)
        ]
        line = CommandLine(self.command, given.config, given.overrides, options, shared, self.line)
        if self.print or self.slurm:
            return runs.print_sweep(line, console, slurm=self.slurm, dry_run=self.dry_run)
        if self.dry_run:
            return runs.check_sweep(line, console)
        return runs.run_sweep(line, console, self.ray)

    def _say_data(self, given: Arguments, console: Console) -> None:
        """Says that data was recognised among the arguments."""
        if given.data:
            console.say(f"data: {', '.join(given.data)} (as {DATA_OPTIONS[self.command][0]})")

    def _check_given(self, given: Arguments, options: Sequence[GivenOption]) -> None:
        """Raises UsageError for a command without arguments, and for switches that exclude one
        another."""
        if not (given.config or given.overrides or options or self.print_config):
            raise UsageError(
                f"`llmkit {self.command}` needs {_NEEDS.get(self.command, 'a model and input')}",
                next=f"try `{FIRST[self.command]}`, or pass a CONFIG; "
                f"`llmkit {self.command} --help` lists the options",
            )
        several = "--train" if self.command == "merge" else "--sweep"
        chosen = [f"--{name}" for name in ("print", "slurm", "ray") if getattr(self, name)]
        if chosen and not (self.sweep or self.train or self._is_shared):
            advice = "add it, or use `--print-config`"
            raise UsageError(f"`{chosen[0]}` needs `{several}`", next=advice)
        if len(chosen) > 1:
            raise UsageError(f"{' and '.join(chosen)} exclude one another", next="keep one of them")
        if self.print_config and (self.sweep or self.train):
            raise UsageError(
                "`--print-config` prints one config",
                next=f"remove `{several}`; `{several} --dry-run` lists the runs",
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
        sources, directory = dict(resolved.sources), self._run_directory(resolved.config)
        shown = {"config": values, "sources": dict(sources), **directory}
        for name in directory.values():
            sources["output_dir"] += f": {name}"
        _print(jsonlib.dumps(shown) if self.json else as_yaml(resolved.config, sources))
        return None

    def _run_directory(self, config: Config) -> dict[str, str]:
        """The run directory of a command that trains, where none is given."""
        if self.command not in ("pretrain", "finetune") or config.output_dir is not None:
            return {}
        from llmkit.training import run_directory

        return {"run_dir": str(run_directory.locate_run(config, self.command))}


def _set_logs(verbose: bool) -> None:
    """Shows the logs of llmkit and its libraries on stderr, or only the errors of transformers."""
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    # Both are read when the libraries are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if verbose else "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not verbose:
        # It warns where the home directory is read-only, and works all the same.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
    if not verbose and (transformers := sys.modules.get("transformers")) is not None:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()


_NEEDS = {
    "pretrain": "text",
    "prepare": "text",
    "finetune": "labelled rows, or prompts with responses",
    "merge": "domain experts",
}


def _with_data(command: str, options: Sequence[Given], data: Sequence[str]) -> list[GivenOption]:
    """The options, with data that was passed without one added."""
    from llmkit.config.given import GivenOption

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


def _print(text: str) -> None:
    with faults.of_stdout():
        print(text.rstrip("\n"), flush=True)
