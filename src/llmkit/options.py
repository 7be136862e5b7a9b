"""The options of the commands, as Typer reads them, and what to say of any other."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.errors import UsageError

if TYPE_CHECKING:
    from llmkit.config.suggestions import Setting

ConfigFile = Annotated[
    str | None, typer.Argument(metavar="CONFIG", help="A YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Override a key of the file: train.learning_rate=3e-4",
        show_default=False,
    ),
]
Text = Annotated[
    list[str] | None,
    typer.Option(
        "--text", "--data", metavar="PATH", help="Text file, directory or glob; repeatable."
    ),
]
EvaluationText = Annotated[
    list[str] | None, typer.Option("--text", metavar="PATH", help="Text to score; repeatable.")
]
Model = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Hub name, model directory or run directory."),
]
Prompt = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="Text to continue; repeatable.")
]
PromptsFile = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="File of prompts: lines, JSONL, or a table's column."),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Write JSON lines here; rerun to continue the job."
    ),
]
Chat = Annotated[bool, typer.Option("--chat", help="Apply the model's chat template to prompts.")]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="System message of the chat.")]
Explain = Annotated[
    int | None, typer.Option(metavar="N", help="Show the N most likely tokens at each step.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", help="Model to evaluate; repeat to compare several."),
]
Csv = Annotated[
    list[str] | None,
    typer.Option(
        "--csv", "--data", metavar="PATH", help="Rows: CSV, TSV, JSONL or Parquet; repeatable."
    ),
]
Rows = Annotated[
    list[str] | None,
    typer.Option(
        "--csv", "--data", metavar="PATH", help="Rows to label: CSV, JSONL, Parquet or text."
    ),
]
Predictions = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write labels here: .jsonl or .csv."),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Task of lm-evaluation-harness, or a file that defines one."),
]
ByDocument = Annotated[bool, typer.Option("--by-document", help="Report each document.")]
ByDomain = Annotated[
    bool, typer.Option("--by-domain", help="Report each file, or each value of a column.")
]
PerToken = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Write a web page that shades tokens by loss."),
]
LogSamples = Annotated[
    str | None, typer.Option(metavar="FILE", help="Write every scored sample as JSON lines.")
]
ResultFile = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Write results here (.json, otherwise plain text)."
    ),
]
OutputDir = Annotated[
    str | None, typer.Option("--output-dir", "-o", metavar="DIR", help="The run directory.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only show warnings and errors.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Also show cached files and what libraries log.")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check everything, but load no weights and write nothing."),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print every key with its value and origin.")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Run the Python file that model.code names.")
]

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="WORD",
        help="Part of a name or of a meaning, or another tool's name for a key.",
        show_default=False,
    ),
]
AppliesTo = Annotated[
    str | None,
    typer.Option(
        "--for", metavar="COMMAND", help="Keys of one command or task: finetune/completion."
    ),
]
KeysJson = Annotated[bool, typer.Option("--json", help="Print the keys as JSON.")]


def refuse_others(
    command: str, arguments: Sequence[str], known: Sequence[str], options: Mapping[str, str]
) -> None:
    """Raises UsageError for options that are none of ours, with what to write instead.

    `known` are the flags of the command, `options` those that stand for a key, by the key.
    """
    unknown: dict[str, str] = {}
    for argument, following in pairwise([*arguments, "-"]):
        if argument.startswith("-") and argument != "-":
            flag, equals, value = argument.partition("=")
            follows = "true" if following.startswith("-") or "=" in following else following
            unknown[flag] = value if equals else follows
    if not unknown:
        return
    from llmkit.config import objectives
    from llmkit.config.schema import Config
    from llmkit.config.suggestions import Setting, Writing

    given = {flag.lstrip("-").replace("-", "_"): value for flag, value in unknown.items()}
    writing, jobs = Writing(True, options), objectives.jobs(command, Config())
    settings = {
        flag: Setting(tuple(flag.lstrip("-").split(".")), value, jobs, writing, given)
        for flag, value in unknown.items()
    }
    said = [f"{flag}: {_instead(flag, setting, known)}" for flag, setting in settings.items()]
    raise UsageError("there is no such option", where="\n       ".join(said))


def _instead(flag: str, setting: Setting, known: Sequence[str]) -> str:
    from llmkit.config import suggestions

    if near := difflib.get_close_matches(flag, known, n=1, cutoff=0.8):
        return f"did you mean `{near[0]}`?"
    options = ", ".join(each for each in known if each.startswith("--"))
    return suggestions.known(setting) or (
        f"the options are {options}; any key can be set with KEY=VALUE: `llmkit keys` lists them"
    )
