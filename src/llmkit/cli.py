"""The command line: arguments in, an exit code out. Only what reads arguments is imported, so that
help is instant."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from llmkit import __version__, faults
from llmkit.arguments import is_override
from llmkit.distributed import launcher
from llmkit.errors import Interrupted, UsageError
from llmkit.help import EPILOG, Command, Commands
from llmkit.options import (
    AllowCode,
    AppliesTo,
    ByDocument,
    ByDomain,
    Chat,
    ConfigFile,
    Csv,
    DryRun,
    EvaluationText,
    Explain,
    Json,
    KeysJson,
    LogSamples,
    Model,
    Models,
    Output,
    OutputDir,
    Overrides,
    PerToken,
    Predictions,
    PrintConfig,
    Prompt,
    PromptsFile,
    Quiet,
    ResultFile,
    Rows,
    System,
    Tasks,
    Text,
    Verbose,
    Words,
    refuse_others,
)
from llmkit.request import Request

app = typer.Typer(
    name="llmkit",
    cls=Commands,
    epilog=EPILOG,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# An option of another tool, such as --lr, comes in as an argument and is answered with our key.
LENIENT = {"ignore_unknown_options": True}


@app.callback(invoke_without_command=True)
def llmkit(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Pretrain, fine-tune, evaluate and sample Hugging Face language models.

    A command takes a YAML file, KEY=VALUE pairs that override it, and options.
    """
    if version:
        print(f"llmkit {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        raise UsageError(
            "no command was given",
            next="`llmkit --help` lists them; a first run: `llmkit pretrain --text corpus.txt`",
        )


@app.command(cls=Command, context_settings=LENIENT)
def pretrain(  # noqa: PLR0913 (a command's parameters are its options)
    ctx: typer.Context,
    config: ConfigFile = None,
    overrides: Overrides = None,
    text: Text = None,
    model: Model = None,
    output_dir: OutputDir = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_code: AllowCode = False,
) -> Request:
    """Train a language model on raw text, from scratch or from a pretrained model."""
    return _request(ctx, text="data.train_files")


@app.command(cls=Command, context_settings=LENIENT)
def finetune(  # noqa: PLR0913 (a command's parameters are its options)
    ctx: typer.Context,
    config: ConfigFile = None,
    overrides: Overrides = None,
    csv: Csv = None,
    model: Model = None,
    output_dir: OutputDir = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_code: AllowCode = False,
) -> Request:
    """Train a classifier on labelled rows, or a model that answers prompts."""
    return _request(ctx, csv="data.train_files")


@app.command(cls=Command, context_settings=LENIENT)
def predict(  # noqa: PLR0913 (a command's parameters are its options)
    ctx: typer.Context,
    config: ConfigFile = None,
    overrides: Overrides = None,
    csv: Rows = None,
    model: Model = None,
    output: Predictions = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_code: AllowCode = False,
) -> Request:
    """Label rows of a file, or lines from a pipe, with a classifier."""
    return _request(ctx, csv="data.test_files", output="predict.output")


@app.command(cls=Command, context_settings=LENIENT)
def generate(  # noqa: PLR0913 (a command's parameters are its options)
    ctx: typer.Context,
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Model = None,
    prompt: Prompt = None,
    prompts_file: PromptsFile = None,
    output: Output = None,
    chat: Chat = False,
    system: System = None,
    explain: Explain = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_code: AllowCode = False,
) -> Request:
    """Generate text from --prompt, --prompts-file, or lines from a pipe."""
    return _request(
        ctx,
        prompt="generation.prompts",
        prompts_file="generation.prompts_file",
        output="generation.output_file",
        chat="generation.chat",
        system="generation.system",
        explain="generation.explain",
    )


@app.command(cls=Command, context_settings=LENIENT)
def chat(  # noqa: PLR0913 (a command's parameters are its options)
    ctx: typer.Context,
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Model = None,
    system: System = None,
    explain: Explain = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_code: AllowCode = False,
) -> Request:
    """Chat with an instruction-tuned model (type /help inside)."""
    return _request(ctx, system="generation.system", explain="generation.explain")


@app.command(cls=Command, context_settings=LENIENT)
def evaluate(  # noqa: PLR0913 (a command's parameters are its options)
    ctx: typer.Context,
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Models = None,
    text: EvaluationText = None,
    csv: Csv = None,
    tasks: Tasks = None,
    by_document: ByDocument = False,
    by_domain: ByDomain = False,
    per_token: PerToken = None,
    log_samples: LogSamples = None,
    output: ResultFile = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_code: AllowCode = False,
) -> Request:
    """Measure perplexity on text, accuracy on labelled rows, or benchmark tasks."""
    given = ctx.params
    given |= {"model": model[0] if model else None, "compare_with": (model or [])[1:]}
    switches, files = ("by_document", "by_domain"), ("per_token", "log_samples", "output")
    keys = {name: f"evaluation.{name}" for name in ("compare_with", "tasks", *switches, *files)}
    return _request(ctx, text="data.test_files", csv="data.test_files", **keys)


@app.command(cls=Command)
def keys(
    words: Words = None,
    applies_to: AppliesTo = None,
    json: KeysJson = False,
) -> None:
    """List the keys of a config: type, default, meaning, and the commands they apply to."""
    from llmkit.config import reference

    with faults.of_stdout():
        print(reference.listed(words or [], applies_to, json))


def main() -> None:
    """Runs the command line of this process and ends it with the exit code."""
    faults.end_by_signals()
    faults.open_streams()
    faults.acknowledge_signals("--json" in sys.argv)
    code = run(sys.argv[1:])
    faults.flush_stderr()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Does what the arguments ask and gives the exit code."""
    warnings: list[str] = []
    return faults.exit_code(lambda: _obey(arguments, warnings), "--json" in arguments, warnings)


def _obey(arguments: Sequence[str], warnings: list[str]) -> int:
    # Typer only reads the arguments; the work is done outside it, where it catches nothing.
    asked = app(arguments, prog_name="llmkit", standalone_mode=False, obj=arguments)
    if isinstance(asked, Request):
        asked.carry_out(warnings)
        return 0
    if asked == Interrupted.exit_code:  # what Typer makes of Ctrl-C
        raise KeyboardInterrupt
    return int(asked or 0)


def _request(ctx: typer.Context, **keys: str) -> Request:
    """The request of a command; `keys` are the config keys of the options that only it has."""
    launcher.check_environment()
    given = ctx.params
    # Click fills CONFIG first, whatever it looks like; `arguments.parse` tells them apart.
    arguments = [a for a in (given["config"], *(given["overrides"] or [])) if a is not None]
    known = [flag for parameter in ctx.command.params for flag in parameter.opts]
    known += ctx.help_option_names
    keys = {"model": "model.name_or_path", "output_dir": "output_dir", **keys}
    own = {name: key for name, key in keys.items() if name in given and name != "compare_with"}
    flags = {key: f"--{name.replace('_', '-')}" for name, key in reversed(own.items())}
    refuse_others(str(ctx.info_name), arguments, known, flags)
    options = [
        (f"--{name.replace('_', '-')}", key, value, _place(ctx, name, arguments))
        for name, key in keys.items()
        if (value := given.get(name)) not in (None, False, [], ())
    ]
    common = ("json", "quiet", "verbose", "dry_run", "print_config", "allow_code")
    switches = {flag: given[flag] for flag in common}
    return Request(str(ctx.info_name), arguments, options, **switches)


def _place(ctx: typer.Context, name: str, arguments: Sequence[str]) -> int:
    """How many of the KEY=VALUE arguments come before an option, where it is given last."""
    raw = ctx.find_root().obj
    name = "model" if name == "compare_with" else name
    flags = next(each.opts for each in ctx.command.params if each.name == name)
    places = [place for place, word in enumerate(raw) if word.partition("=")[0] in flags]
    before = raw[: places[-1]] if places else raw
    return sum(is_override(word) and word in arguments for word in before)
