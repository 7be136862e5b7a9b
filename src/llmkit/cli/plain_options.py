"""The arguments and options of the commands that take no config."""

from __future__ import annotations

from typing import Annotated

import typer

from llmkit.cli.completion import complete_job, complete_run, complete_scope, complete_word

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="WORD",
        help="Part of a key's name or meaning, or its name in another tool.",
        show_default=False,
        autocompletion=complete_word,
    ),
]
AppliesTo = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="COMMAND",
        help="Only keys of a command or task, such as finetune/completion.",
        autocompletion=complete_scope,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobName = Annotated[
    str | None,
    typer.Argument(
        metavar="JOB",
        help="What to begin; without it, you are asked.",
        show_default=False,
        autocompletion=complete_job,
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        "--csv",
        "--data",
        metavar="PATH",
        help="Your files; repeatable.",
        show_default=False,
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Model to start from.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
StarterFile = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write the config here; JOB.yaml by default.",
        show_default=False,
    ),
]
Runs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN",
        help="Run directory; several are compared. Or a JSON result of `evaluate` on a run.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
Page = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the page here.", show_default=False),
]
Opens = Annotated[bool, typer.Option("--open", help="Open the page in a browser.")]
Pushed = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="Run directory, or directory of a finished model.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
Repo = Annotated[
    str | None,
    typer.Option(
        "--repo", metavar="NAME", help="Repository: NAME or OWNER/NAME.", show_default=False
    ),
]
Public = Annotated[
    bool, typer.Option("--public", help="Let everybody read it; private by default.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Upload without asking.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be uploaded; make no request.")
]
ProcessCount = Annotated[
    int | None,
    typer.Argument(metavar="N", help="Processes on this machine.", show_default=False),
]
LaunchedWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="-- COMMAND",
        help="The command with its options, after `--`.",
        show_default=False,
    ),
]
Nodes = Annotated[
    int | None, typer.Option("--nodes", metavar="M", help="Machines.", show_default=False)
]
Node = Annotated[
    int | None,
    typer.Option("--node", metavar="I", help="Number of this machine, from 0.", show_default=False),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST",
        help="Name or address of machine 0.",
        show_default=False,
    ),
]
MainPort = Annotated[
    int | None,
    typer.Option(
        "--port",
        metavar="P",
        help="Port on machine 0; 29500 with several machines.",
        show_default=False,
    ),
]
Restarts = Annotated[
    int,
    typer.Option(
        "--restarts",
        metavar="K",
        help="Restart K times at most when a process is lost; the run resumes.",
        show_default=False,
    ),
]
