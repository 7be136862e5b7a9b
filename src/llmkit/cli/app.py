"""The command line: arguments in, exit code out. Imports nothing heavy, so that help is instant."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from llmkit import __version__
from llmkit.cli import faults
from llmkit.cli.arguments import experts_of, is_override
from llmkit.cli.help import EPILOG, FIRST, Command, Commands
from llmkit.cli.invocation import Given, Invocation
from llmkit.cli.options import OPTIONS, Option, parameters, switches
from llmkit.cli.plain_options import (
    Address,
    AppliesTo,
    Data,
    DryRun,
    JobName,
    Json,
    LaunchedWords,
    MainPort,
    ModelName,
    Node,
    Nodes,
    Opens,
    Page,
    ProcessCount,
    Public,
    Pushed,
    Repo,
    Restarts,
    Runs,
    StarterFile,
    Words,
    Yes,
)
from llmkit.cli.unknown_options import refuse_unknown
from llmkit.distributed import launcher, signals
from llmkit.distributed.child import end_with_parent
from llmkit.errors import Interrupted, UsageError

app = typer.Typer(
    name="llmkit",
    cls=Commands,
    epilog=EPILOG,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Options of other tools, such as --lr, arrive as arguments and are answered with our key.
_LENIENT = {"ignore_unknown_options": True}


@app.callback(invoke_without_command=True)
def llmkit(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Pretrain, fine-tune, evaluate and sample Hugging Face language models.

    Each command takes an optional YAML config, KEY=VALUE pairs that override it, and
    options.
    """
    if version:
        print(f"llmkit {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        raise UsageError(
            "no command given",
            next="`llmkit --help` lists the commands; try `llmkit pretrain --text corpus.txt`",
        )
    if ctx.invoked_subcommand not in OPTIONS:
        if ctx.invoked_subcommand != "launch":  # whose processes are not those of Slurm
            launcher.adopt_step()
        launcher.refuse_sharing_work(ctx.invoked_subcommand)


def _add(command: str, help: str) -> None:
    """Adds a command whose parameters are the options declared for it."""

    def asked(ctx: typer.Context, **_given: object) -> Invocation:
        return _invocation(command, ctx)

    asked.__name__, asked.__doc__ = command, help
    asked.__signature__ = Signature(parameters(command))  # type: ignore[attr-defined]
    app.command(cls=Command, context_settings=_LENIENT)(asked)


_add("pretrain", "Train a language model on raw text, from scratch or from a pretrained model.")
_add("finetune", "Train a classifier or tagger on rows, or a model that answers prompts.")
_add("merge", "Merge domain experts into an ensemble, a mixture of experts or an average.")
_add("predict", "Label rows of a file, or lines from a pipe, with a classifier or tagger.")
_add("generate", "Continue prompts, or fill their masks, from --prompt, --prompts-file or a pipe.")
_add("chat", "Chat with a model, or continue text with a base model (type /help inside).")
_add("serve", "Serve models over HTTP: completions, chat and classification, as OpenAI's API.")
_add("export", "Write a model for llama.cpp, ONNX Runtime or peft, verified against the model.")
_add("clean", "Repair and deduplicate text before training on it, with a report.")
_add("prepare", "Tokenize text ahead of `llmkit pretrain`, with any number of processes.")
_add("evaluate", "Measure perplexity on text, accuracy on labelled rows, or benchmark tasks.")


@app.command("keys", cls=Command)
def keys_command(
    words: Words = None,
    applies_to: AppliesTo = None,
    json: Json = False,
) -> None:
    """List config keys with type, default, meaning and the commands they apply to."""
    from llmkit.config import reference

    with faults.of_stdout():
        print(reference.list_keys(words or [], applies_to, json), flush=True)


@app.command("init", cls=Command)
def init_command(
    job: JobName = None,
    data: Data = None,
    model: ModelName = None,
    output: StarterFile = None,
    json: Json = False,
) -> None:
    """Write a commented starter config for a job, with your files filled in."""
    from llmkit.config.starters import STARTERS

    if job is None and not json and sys.stdin.isatty() and sys.stderr.isatty():
        job, data = _ask(STARTERS, data)
    if job not in STARTERS:
        jobs = ", ".join(STARTERS)
        what = "`llmkit init` needs a job" if job is None else f"there is no starter for {job!r}"
        near = difflib.get_close_matches(str(job), STARTERS, n=1)
        raise UsageError(
            what, next=f"did you mean `llmkit init {near[0]}`?" if near else f"pass one of {jobs}"
        )
    from llmkit.commands.init import write_starter

    _print(write_starter(job, data or [], model, output), json)


def _ask(starters: Mapping[str, Any], data: list[str] | None) -> tuple[str, list[str] | None]:
    """Asks on a terminal for the job, and for its files where none are given."""
    for name, starter in starters.items():
        typer.echo(f"  {name:16}{starter.about}", err=True)
    job = str(typer.prompt("What do you want to make", default="pretrain", err=True)).strip()
    if not data and job in starters and starters[job].files:
        given = str(typer.prompt("Your files (Enter to fill them in later)", default="", err=True))
        data = _as_paths(given)
    return job, data


def _as_paths(given: str) -> list[str]:
    """The paths of an answer: one that exists, or else the words that a shell would read."""
    if Path(given).exists() and given:
        return [given]
    try:
        return shlex.split(given)
    except ValueError as error:
        raise UsageError(
            f"cannot read the files: {error}", where=given, next="close the quote, or use none"
        ) from None


@app.command("report", cls=Command)
def report_command(
    runs: Runs = None,
    output: Page = None,
    open: Opens = False,
    json: Json = False,
) -> None:
    """Write one HTML page on a run, or comparing several runs."""
    if not runs:
        raise UsageError("`llmkit report` needs a run", next=f"try `{FIRST['report']}`")
    from llmkit.reporting.console import Console

    with Console(json).waiting("reading the runs…"):
        with signals.importing():
            from llmkit.commands.report import report_runs

        found = report_runs(runs, output, open)
    _print(found, json)


@app.command("push", cls=Command)
def push_command(
    run: Pushed = None,
    repo: Repo = None,
    public: Public = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Upload a finished model with its card to the Hugging Face Hub."""
    if not (run and repo):
        missing = "--repo" if run else "a run"
        raise UsageError(f"`llmkit push` needs {missing}", next=f"try `{FIRST['push']}`")
    with signals.importing():
        from llmkit.commands.push import push_model
    from llmkit.reporting.console import Console

    console = Console(json)
    try:
        result = push_model(run, repo, public=public, yes=yes, dry_run=dry_run, console=console)
    except (KeyboardInterrupt, faults.Ended) as fault:
        raise faults.stopped(
            fault, kept="the repository: a commit is visible whole or not at all"
        ) from fault
    _print(result, json, console.warnings)


@app.command("launch", cls=Command, context_settings=_LENIENT)
def launch_command(
    processes: ProcessCount = None,
    words: LaunchedWords = None,
    nodes: Nodes = None,
    node: Node = None,
    address: Address = None,
    port: MainPort = None,
    restarts: Restarts = 0,
) -> Callable[[], int]:
    """Run a command in N processes on this machine, or on each of several machines."""
    from llmkit.commands.launch import plan_launch
    from llmkit.reporting.console import Console

    plan = plan_launch(words or [], processes, (nodes, node, address, port), restarts)
    return partial(plan.carry_out, Console("--json" in plan.words))


@app.command("env", cls=Command)
def env_command(json: Json = False) -> None:
    """Print versions, devices and paths for a bug report."""
    from llmkit.commands.env import describe_environment
    from llmkit.reporting.console import Console

    with Console(json).loading(), signals.importing():
        found = describe_environment()
    _print(found, json)


def _print(result: dict[str, Any], as_json: bool, warnings: list[str] | None = None) -> None:
    """Prints the result of a command that takes no config."""
    from llmkit.reporting.console import Console

    with faults.of_stdout():
        Console(as_json, warnings=warnings).result(result)


def main() -> None:
    """Runs the command line of this process and ends it with the exit code."""
    faults.end_by_signals("--json" in sys.argv)
    with faults.reported("--json" in sys.argv) as outcome:
        faults.open_streams()
        end_with_parent()
        faults.acknowledge_signals("--json" in sys.argv)
        outcome.code = run_command(sys.argv[1:])
    faults.end_process(outcome.code)


def run_command(arguments: Sequence[str]) -> int:
    """Runs the command that the arguments name and returns the exit code."""
    warnings: list[str] = []
    with faults.reported("--json" in arguments, warnings) as outcome:
        # Typer only parses the arguments; the command runs outside it, where it catches nothing.
        try:
            asked = app(arguments, prog_name="llmkit", standalone_mode=False, obj=arguments)
        except SystemExit as ended:  # Typer's answer to a broken pipe, and the end of a completion
            if "_LLMKIT_COMPLETE" in os.environ:
                raise
            raise BrokenPipeError from ended
        if isinstance(asked, Invocation):
            asked.carry_out(warnings)
        elif callable(asked):
            outcome.code = asked()
        elif asked == Interrupted.exit_code:  # Typer's result after Ctrl-C
            raise KeyboardInterrupt
        else:
            outcome.code = int(asked or 0)
    return outcome.code


def _invocation(command: str, ctx: typer.Context) -> Invocation:
    """The invocation of a command, from the parameters that Typer parsed."""
    launcher.check_environment()
    launcher.refuse_sharing_work(command)
    given, options = ctx.params, OPTIONS[command]
    # Click fills CONFIG first, whatever it looks like; `parse_arguments` sorts them out.
    arguments = [a for a in (given["config"], *(given["overrides"] or [])) if a is not None]
    known = [flag for parameter in ctx.command.params for flag in parameter.opts]
    known += ctx.help_option_names
    refuse_unknown(command, arguments, known, {each.key: each.flag for each in reversed(options)})
    chosen: list[Given] = []
    for option in options:
        value, place = given[option.name], _place(ctx, option, arguments)
        if option.key == "model.name_or_path" and isinstance(value, list) and value:
            value, others = value[0], value[1:]
            if others:
                chosen.append((option.flag, "evaluation.compare_with", others, place))
        if option.key == "merge.experts" and value:
            chosen += [(option.flag, *pair, place) for pair in experts_of(value)]
        elif value is not None and value is not False and value not in ([], ()):
            chosen.append((option.flag, option.key, value, place))
    return Invocation(
        command,
        ctx.find_root().obj,
        arguments,
        chosen,
        **{each.name: given[each.name] for each in switches(command)},
    )


def _place(ctx: typer.Context, option: Option, arguments: Sequence[str]) -> int:
    """How many KEY=VALUE arguments come before the last occurrence of an option."""
    raw = ctx.find_root().obj
    places = [place for place, word in enumerate(raw) if option.begins(word)]
    before = raw[: places[-1]] if places else raw
    return sum(is_override(word) and word in arguments for word in before)
