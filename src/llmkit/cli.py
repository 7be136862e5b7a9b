"""The command line: arguments in, an exit code out. Nothing heavy is imported, so that help is
instant."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from llmkit import __version__, faults
from llmkit.config.load import Option
from llmkit.errors import Interrupted, UsageError
from llmkit.options import (
    AllowCode,
    ByDocument,
    ByDomain,
    Chat,
    ConfigFile,
    Csv,
    DryRun,
    Explain,
    Json,
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
    refuse_others,
)
from llmkit.request import Request

app = typer.Typer(
    name="llmkit",
    add_completion=False,
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
    """Pretrain, fine-tune, evaluate and sample Hugging Face language models."""
    if version:
        print(f"llmkit {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        raise UsageError(
            "no command was given",
            next="`llmkit --help` shows them all; a first run: `llmkit pretrain --text corpus.txt`",
        )


@app.command(context_settings=LENIENT)
def pretrain(  # noqa: PLR0913 (a command's parameters are its options)
    ctx: typer.Context,
    config: ConfigFile = None,
    overrides: Overrides = None,
    text: Text = None,
    model: Model = None,
    output_dir: OutputDir = None,
    json: Json = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_code: AllowCode = False,
) -> Request:
    """Train a causal language model on raw text, from scratch or from a model."""
    return _request(ctx, text="data.train_files")


@app.command(context_settings=LENIENT)
def finetune(  # noqa: PLR0913 (a command's parameters are its options)
    ctx: typer.Context,
    config: ConfigFile = None,
    overrides: Overrides = None,
    csv: Csv = None,
    model: Model = None,
    output_dir: OutputDir = None,
    json: Json = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_code: AllowCode = False,
) -> Request:
    """Train a classifier on labelled rows, or a model to respond to prompts."""
    return _request(ctx, csv="data.train_files")


@app.command(context_settings=LENIENT)
def predict(  # noqa: PLR0913 (a command's parameters are its options)
    ctx: typer.Context,
    config: ConfigFile = None,
    overrides: Overrides = None,
    csv: Rows = None,
    model: Model = None,
    output: Predictions = None,
    json: Json = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_code: AllowCode = False,
) -> Request:
    """Label texts with a classifier: rows of --csv, or lines in a pipe."""
    return _request(ctx, csv="data.test_files", output="predict.output")


@app.command(context_settings=LENIENT)
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
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_code: AllowCode = False,
) -> Request:
    """Write text with a language model: from --prompt, --prompts-file, or lines in a pipe."""
    return _request(
        ctx,
        prompt="generation.prompts",
        prompts_file="generation.prompts_file",
        output="generation.output_file",
        chat="generation.chat",
        system="generation.system",
        explain="generation.explain",
    )


@app.command(context_settings=LENIENT)
def chat(  # noqa: PLR0913 (a command's parameters are its options)
    ctx: typer.Context,
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Model = None,
    system: System = None,
    explain: Explain = None,
    json: Json = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_code: AllowCode = False,
) -> Request:
    """Talk with a language model that has a chat template; /help shows its commands."""
    return _request(ctx, system="generation.system", explain="generation.explain")


@app.command(context_settings=LENIENT)
def evaluate(  # noqa: PLR0913 (a command's parameters are its options)
    ctx: typer.Context,
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Models = None,
    text: Text = None,
    csv: Csv = None,
    tasks: Tasks = None,
    by_document: ByDocument = False,
    by_domain: ByDomain = False,
    per_token: PerToken = None,
    log_samples: LogSamples = None,
    output: ResultFile = None,
    json: Json = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_code: AllowCode = False,
) -> Request:
    """Measure models: perplexity of text, accuracy on a CSV, texts against references, tasks."""
    given = ctx.params
    given |= {"model": model[0] if model else None, "compare_with": (model or [])[1:]}
    switches, files = ("by_document", "by_domain"), ("per_token", "log_samples", "output")
    keys = {name: f"evaluation.{name}" for name in ("compare_with", "tasks", *switches, *files)}
    return _request(ctx, text="data.test_files", csv="data.test_files", **keys)


def main() -> None:
    """Runs the command line of this process and ends it with the exit code."""
    faults.open_streams()
    faults.end_by_signals()
    code = run(sys.argv[1:])
    faults.flush_stderr()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Does what the arguments ask and gives the exit code."""
    return faults.exit_code(lambda: _obey(arguments))


def _obey(arguments: Sequence[str]) -> int:
    # Typer only reads the arguments; the work is done outside it, where it catches nothing.
    asked = app(arguments, prog_name="llmkit", standalone_mode=False)
    if isinstance(asked, Request):
        asked.carry_out()
        return 0
    if asked == Interrupted.exit_code:  # what Typer makes of Ctrl-C
        raise KeyboardInterrupt
    return int(asked or 0)


def _request(ctx: typer.Context, **keys: str) -> Request:
    """The request of a command; `keys` are the config keys of the options that only it has."""
    given = ctx.params
    # Click fills CONFIG first, whatever it looks like; _split tells the two apart.
    arguments = [a for a in (given["config"], *(given["overrides"] or [])) if a is not None]
    known = [flag for parameter in ctx.command.params for flag in parameter.opts]
    refuse_others(arguments, known)
    keys = {"model": "model.name_or_path", "output_dir": "output_dir", **keys}
    options = [
        Option(f"--{name.replace('_', '-')}", key, value)
        for name, key in keys.items()
        if (value := given.get(name)) not in (None, False, [], ())
    ]
    flags = ("json", "quiet", "dry_run", "print_config", "allow_code")
    switches = {flag: given[flag] for flag in flags}
    return Request(str(ctx.info_name), arguments, options, **switches)
