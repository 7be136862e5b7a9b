"""The options of the commands, as Typer reads them, and what to say of any other."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import typer

from llmkit.config import advice
from llmkit.config.advice import Writing
from llmkit.errors import UsageError

ConfigFile = Annotated[
    str | None, typer.Argument(metavar="CONFIG", help="A YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Keys that override the file's: train.learning_rate=3e-4",
        show_default=False,
    ),
]
Text = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH", help="Text file, directory or glob; may be repeated."),
]
Model = Annotated[
    str | None, typer.Option(metavar="NAME", help="Hub name, directory or run directory.")
]
Prompt = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="Text to continue; may be repeated.")
]
PromptsFile = Annotated[
    str | None, typer.Option(metavar="PATH", help="Prompts: lines, JSONL, or a table's column.")
]
Output = Annotated[
    str | None, typer.Option(metavar="PATH", help="JSON lines; the same command goes on there.")
]
Chat = Annotated[bool, typer.Option("--chat", help="Ask through the chat template.")]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="System message of a chat.")]
Explain = Annotated[
    int | None, typer.Option(metavar="N", help="Show the N likeliest tokens at each step.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", help="As many as are to be compared."),
]
Csv = Annotated[
    list[str] | None, typer.Option(metavar="PATH", help="Labelled rows; may be repeated.")
]
Rows = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH", help="Rows to label: CSV, JSONL, Parquet or text; may be repeated."
    ),
]
Predictions = Annotated[
    str | None, typer.Option(metavar="FILE", help="The predictions: .jsonl or .csv.")
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Task of lm-evaluation-harness, or a file of one."),
]
ByDocument = Annotated[bool, typer.Option("--by-document", help="A row for each document.")]
ByDomain = Annotated[
    bool, typer.Option("--by-domain", help="A row for each file, or value of a column.")
]
PerToken = Annotated[
    str | None, typer.Option(metavar="FILE", help="Web page that shades each token by surprise.")
]
LogSamples = Annotated[
    str | None, typer.Option(metavar="FILE", help="All that was scored, as JSON lines.")
]
ResultFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="The result: .json, or else text for people.")
]
OutputDir = Annotated[str | None, typer.Option(metavar="DIR", help="The run directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say only warnings and errors.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything; load no weights, write nothing.")
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print every key, its value and its origin.")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Run the file that model.code names.")
]


def refuse_others(arguments: Sequence[str], known: Sequence[str]) -> None:
    """Raises UsageError for options that are none of ours, with the key to write instead."""
    unknown: dict[str, str] = {}
    for argument, following in pairwise([*arguments, "-"]):
        if argument.startswith("-") and argument != "-":
            flag, equals, value = argument.partition("=")
            follows = "true" if following.startswith("-") or "=" in following else following
            unknown[flag] = value if equals else follows
    if not unknown:
        return
    given = {flag.lstrip("-").replace("-", "_"): value for flag, value in unknown.items()}
    said = [f"{flag}: {_instead(flag, unknown[flag], given, known)}" for flag in unknown]
    raise UsageError("there is no such option", where="\n       ".join(said))


def _instead(flag: str, value: str, given: dict[str, str], known: Sequence[str]) -> str:
    if near := difflib.get_close_matches(flag, known, n=1, cutoff=0.8):
        return f"did you mean `{near[0]}`?"
    return advice.for_key(tuple(flag.lstrip("-").split(".")), value, given, Writing(True))
