"""The options of the commands, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.completion import complete_key, complete_run

if TYPE_CHECKING:
    pass


_TEXT = str | None
_TEXTS = list[str] | None
_INT = int | None


@dataclass(frozen=True)
class Option:
    """An option, and the config key that it sets; the common switches set none."""

    flags: str
    """`--name` and its aliases, separated by spaces."""
    help: str
    metavar: str | None = None
    key: str = ""
    kind: Any = bool

    @property
    def names(self) -> tuple[str, ...]:
        """The flag and its aliases."""
        return tuple(self.flags.split())

    def begins(self, word: str) -> bool:
        """Whether a word of the command line is the option, perhaps with its value: `--name=VALUE`,
        or `-nVALUE` for a name of one letter."""
        return any(
            word == name or word.startswith(f"{name}=" if name.startswith("--") else name)
            for name in self.names
        )

    @property
    def flag(self) -> str:
        """The flag to show in messages."""
        return self.names[0]

    @property
    def name(self) -> str:
        """The name of the parameter."""
        return self.flag.removeprefix("--").replace("-", "_")

    def parameter(self) -> Parameter:
        """The option as Typer reads it from a signature."""
        declared = typer.Option(
            *self.names,
            metavar=self.metavar,
            help=self.help,
            autocompletion=complete_run if self.flag == "--model" else None,
        )
        return _parameter(self.name, self.kind, declared, False if self.kind is bool else None)


_MODEL = Option(
    "--model", "Hub name, model directory or run directory.", "NAME", "model.name_or_path", _TEXT
)
_MODELS = Option(
    "--model", "Model to evaluate; repeat to compare several.", "NAME", "model.name_or_path", _TEXTS
)
_MERGED = Option(
    "--model",
    "Merged model to add experts to, or take them out of.",
    "NAME",
    "model.name_or_path",
    _TEXT,
)
_OUTPUT_DIR = Option("--output-dir -o", "Run directory.", "DIR", "output_dir", _TEXT)
_SYSTEM = Option("--system", "System message of the chat.", "TEXT", "generation.system", _TEXT)
_EXPLAIN = Option(
    "--explain",
    "Show the N most likely tokens at each step, or for a mask.",
    "N",
    "generation.explain",
    int | None,
)

_COMMON = (
    Option("--json", "Print the result, or the error, as JSON."),
    Option("--quiet", "Only show warnings and errors."),
    Option("--verbose", "Also show cached files and the libraries' logs."),
    Option("--dry-run", "Check everything, but load no weights and write nothing."),
    Option("--print-config", "Print every config key with its value and origin."),
    Option("--allow-code", "Allow the Python file in model.code to run."),
)
"""The switches of every command that takes a config."""


def _for_several(switch: str, help: str) -> tuple[Option, ...]:
    """A switch that makes a command several runs, and those that say what to do with them."""
    return (
        Option(switch, help),
        Option("--print", f"With {switch}: print the command of each run."),
        Option("--slurm", f"With {switch}: print a script that submits the runs to Slurm."),
        Option("--ray", f"With {switch}: run on a Ray cluster.", "ADDRESS", "", _TEXT),
    )


SWEEP_SWITCHES = _for_several("--sweep", "Run every combination of KEY=A,B,... one after another.")
_MERGE_SWITCHES = _for_several(
    "--train", "First train what is missing: the seed, and an expert of each domain."
)

_WORKER_SWITCHES = (
    Option("--workers", "Processes on this machine; by default as many as cores.", "N", "", _INT),
    Option("--worker", "Number of this command among those of --of, from 0.", "I", "", _INT),
    Option("--of", "Number of commands that share the work.", "N", "", _INT),
    Option("--ray", "Run the commands of --of as jobs of a Ray cluster.", "ADDRESS", "", _TEXT),
)
"""The switches of commands whose work is divided into units."""

_TRAIN_TEXT = Option(
    "--text --data", "Text file, directory or glob; repeatable.", "PATH", "data.train_files", _TEXTS
)

OPTIONS: dict[str, tuple[Option, ...]] = {
    "pretrain": (
        _TRAIN_TEXT,
        _MODEL,
        Option(
            "--expert",
            "Domain of the mixture to train an expert of, beginning with --model.",
            "DOMAIN",
            "data.expert",
            _TEXT,
        ),
        _OUTPUT_DIR,
    ),
    "prepare": (_TRAIN_TEXT, _MODEL),
    "finetune": (
        Option(
            "--csv --data",
            "Rows as CSV, TSV, JSONL or Parquet; repeatable.",
            "PATH",
            "data.train_files",
            _TEXTS,
        ),
        _MODEL,
        _OUTPUT_DIR,
    ),
    "merge": (
        Option("--expert", "Expert to merge; repeatable.", "DOMAIN=RUN", "merge.experts", _TEXTS),
        _MERGED,
        Option(
            "--without",
            "Expert to take out of --model; repeatable.",
            "DOMAIN",
            "merge.without",
            _TEXTS,
        ),
        Option(
            "--only", "Expert of --model to write as a dense model.", "DOMAIN", "merge.only", _TEXT
        ),
        _OUTPUT_DIR,
    ),
    "predict": (
        Option(
            "--csv --data",
            "Rows to label, as CSV, JSONL, Parquet or text; repeatable.",
            "PATH",
            "data.test_files",
            _TEXTS,
        ),
        _MODEL,
        Option(
            "--output -o",
            "Write predictions here (.jsonl or .csv).",
            "FILE",
            "predict.output",
            _TEXT,
        ),
    ),
    "generate": (
        _MODEL,
        Option(
            "--prompt",
            "Text to continue, or to fill at [MASK]; repeatable.",
            "TEXT",
            "generation.prompts",
            _TEXTS,
        ),
        Option(
            "--prompts-file",
            "File of prompts: text lines, JSONL, or a table.",
            "PATH",
            "generation.prompts_file",
            _TEXT,
        ),
        Option(
            "--output -o",
            "Write JSON lines here; rerun to continue where it stopped.",
            "FILE",
            "generation.output_file",
            _TEXT,
        ),
        Option("--chat", "Apply the model's chat template to prompts.", key="generation.chat"),
        _SYSTEM,
        _EXPLAIN,
    ),
    "chat": (_MODEL, _SYSTEM, _EXPLAIN),
    "clean": (
        Option(
            "--text --csv --data",
            "Text or rows to clean: file, directory or glob; repeatable.",
            "PATH",
            "data.train_files",
            _TEXTS,
        ),
        Option("--output -o", "Directory for the cleaned text.", "DIR", "clean.output", _TEXT),
        Option("--explain", "Show what each stage finds.", "FILE#ROW", "clean.explain", _TEXT),
    ),
    "export": (
        _MODEL,
        Option("--format", "gguf, onnx, peft or safetensors.", "NAME", "export.format", _TEXT),
        Option("--type", "Number type of the weights, such as q8_0.", "NAME", "export.type", _TEXT),
        Option(
            "--expert",
            "Expert of a merged model to export as a dense model.",
            "DOMAIN",
            "export.expert",
            _TEXT,
        ),
        Option(
            "--csv --data",
            "Labelled rows to measure a classifier on, before and after; repeatable.",
            "PATH",
            "data.test_files",
            _TEXTS,
        ),
        Option("--output -o", "File or directory to write.", "PATH", "export.output", _TEXT),
    ),
    "serve": (
        Option(
            "--model",
            "Model to serve, under its own name or as NAME=RUN; repeatable.",
            "RUN",
            "serve.models",
            _TEXTS,
        ),
        Option("--host", "Address to listen on.", "ADDRESS", "serve.host", _TEXT),
        Option("--port", "Port to listen on; 0 chooses a free one.", "N", "serve.port", int | None),
        Option(
            "--api-key-file",
            "File of API keys, one per line.",
            "FILE",
            "serve.api_key_file",
            _TEXT,
        ),
        Option(
            "--grace",
            "Seconds that requests have to finish after a stop signal.",
            "SECONDS",
            "serve.grace",
            float | None,
        ),
    ),
    "evaluate": (
        _MODELS,
        Option("--text", "Text to score; repeatable.", "PATH", "data.test_files", _TEXTS),
        Option(
            "--csv --data",
            "Rows as CSV, TSV, JSONL or Parquet; repeatable.",
            "PATH",
            "data.test_files",
            _TEXTS,
        ),
        Option(
            "--tasks",
            "Task of lm-evaluation-harness, or a task file; repeatable.",
            "NAME",
            "evaluation.tasks",
            _TEXTS,
        ),
        Option("--by-document", "Report figures for each document.", key="evaluation.by_document"),
        Option(
            "--by-domain",
            "Report figures for each file, or value of a column.",
            key="evaluation.by_domain",
        ),
        Option(
            "--per-token",
            "Write a web page that shades each token by its loss.",
            "FILE",
            "evaluation.per_token",
            _TEXT,
        ),
        Option(
            "--log-samples",
            "Write every scored sample as JSON lines.",
            "FILE",
            "evaluation.log_samples",
            _TEXT,
        ),
        Option(
            "--label-errors",
            "Write the rows whose label is probably wrong as JSON lines.",
            "FILE",
            "evaluation.label_errors",
            _TEXT,
        ),
        Option(
            "--output -o",
            "Write results here (.json, .md, else plain text).",
            "FILE",
            "evaluation.output",
            _TEXT,
        ),
    ),
}
"""The options of each command that set config keys."""


def switches(command: str) -> tuple[Option, ...]:
    """The switches of a command, which set no config key."""
    several = {
        "pretrain": SWEEP_SWITCHES,
        "finetune": SWEEP_SWITCHES,
        "merge": _MERGE_SWITCHES,
        "clean": _WORKER_SWITCHES,
        "prepare": _WORKER_SWITCHES,
    }
    return (*_COMMON, *several.get(command, ()))


def parameters(command: str) -> list[Parameter]:
    """The parameters of a command: its context, CONFIG, KEY=VALUE and its options."""
    config = typer.Argument(
        metavar="CONFIG",
        help="YAML config file.",
        show_default=False,
        autocompletion=complete_key,
    )
    overrides = typer.Argument(
        metavar="KEY=VALUE",
        help="Set a config key: train.learning_rate=3e-4",
        show_default=False,
        autocompletion=complete_key,
    )
    return [
        Parameter("ctx", Parameter.KEYWORD_ONLY, annotation=typer.Context),
        _parameter("config", _TEXT, config, None),
        _parameter("overrides", _TEXTS, overrides, None),
        *(option.parameter() for option in (*OPTIONS[command], *switches(command))),
    ]


def _parameter(name: str, kind: Any, declared: Any, default: Any) -> Parameter:
    annotation = Annotated[kind, declared]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
