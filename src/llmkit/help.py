"""What `llmkit --help` shows, and the answer to an unknown command."""

from __future__ import annotations

import difflib
from typing import Any

from typer.core import TyperCommand, TyperGroup

from llmkit.errors import UsageError

GROUPS = {
    "Train": ("pretrain", "finetune"),
    "Use": ("generate", "chat", "predict"),
    "Measure": ("evaluate",),
}
"""The commands by what they are for; any other is listed under `Help`."""

FIRST = {
    "pretrain": "llmkit pretrain --text corpus.txt",
    "finetune": "llmkit finetune --csv reviews.csv",
    "generate": 'llmkit generate --model runs/mine --prompt "Once upon a time"',
    "chat": "llmkit chat --model runs/mine",
    "predict": "llmkit predict --model runs/mine --csv new.csv --output labels.csv",
    "evaluate": "llmkit evaluate --model runs/mine --text test.txt",
}
"""The command line to begin with, for each command."""

EPILOG = "\n".join(
    (
        "\b",
        "Examples:",
        *(f"  {line}" for line in FIRST.values() if "chat" not in line),
        "",
        "\b",
        "`llmkit COMMAND --help` lists the options of a command,",
        "`llmkit keys [WORD]` its keys with their meaning,",
        "`llmkit COMMAND --print-config` their values.",
    )
)

USE = "`llmkit generate` to continue texts, `llmkit predict` to label rows"

ELSEWHERE = {
    "train": "`llmkit pretrain` to train on raw text, `llmkit finetune` for labelled rows or chats",
    "fit": "`llmkit finetune` for labelled rows, `llmkit pretrain` for raw text",
    "sft": "`llmkit finetune train.objective=completion --csv chats.jsonl`",
    "tune": "`llmkit finetune --csv rows.csv --model MODEL`",
    "test": "`llmkit evaluate --model runs/mine`, with `--text` or `--csv`",
    "eval": "`llmkit evaluate --model runs/mine`, with `--text` or `--csv`",
    "score": "`llmkit evaluate --model runs/mine`, with `--text` or `--csv`",
    "benchmark": "`llmkit evaluate --model runs/mine --tasks hellaswag`",
    "sample": "`llmkit generate --model runs/mine --prompt TEXT`",
    "complete": "`llmkit generate --model runs/mine --prompt TEXT`",
    "infer": USE,
    "inference": USE,
    "run": USE,
    "classify": "`llmkit predict --model runs/mine --csv new.csv`",
    "talk": "`llmkit chat --model runs/mine`",
    "resume": "the command that started the run: given again, it resumes from the last checkpoint",
    "continue": "the command that started the run: given again, it resumes where it stopped",
    "compare": "`llmkit evaluate --model runs/a --model runs/b --text test.txt`",
    "runs": "`ls runs`; each run directory has its figures in metrics.jsonl and loss.png",
    "list": "`ls runs`; each run directory has its figures in metrics.jsonl and loss.png",
    "plot": "loss.png in the run directory, drawn at the end of each run",
    "report": "loss.png, metrics.jsonl and evaluation.json in the run directory, or "
    "`llmkit evaluate --model runs/mine --output report.txt`",
    "info": "`llmkit --version` for the version, a run's run.json for its facts",
    "env": "`llmkit --version` for the version, a run's run.json for its facts",
    "version": "`llmkit --version`",
    "init": "`llmkit pretrain --print-config > run.yaml`, then change what you need",
    "config": "`llmkit keys` for every key, `llmkit pretrain --print-config` for their values",
    "settings": "`llmkit keys`",
    "options": "`llmkit keys`",
    "params": "`llmkit keys`",
    "serve": "runs/mine/final is a Hugging Face model: `vllm serve runs/mine/final`",
    "api": "runs/mine/final is a Hugging Face model: `vllm serve runs/mine/final`",
    "deploy": "runs/mine/final is a Hugging Face model: `vllm serve runs/mine/final`",
    "export": "runs/mine/final is a Hugging Face model already; "
    "`optimum-cli export onnx --model runs/mine/final onnx/` converts it",
    "convert": "runs/mine/final is a Hugging Face model already",
    "merge": "runs/mine/final holds the whole model: updates of LoRA are merged into it",
    "push": "`hf upload NAME runs/mine/final` uploads the model",
    "upload": "`hf upload NAME runs/mine/final` uploads the model",
    "download": "`--model OWNER/NAME` downloads the model when it is first used",
    "tokenize": "`llmkit pretrain --text corpus.txt`, which trains a tokenizer if none is named",
    "prepare": "`llmkit pretrain --text corpus.txt --dry-run`, which checks the data",
    "preprocess": "`llmkit pretrain --text corpus.txt --dry-run`, which checks the data",
    "clean": "`llmkit finetune --csv rows.csv --dry-run`, which reports faults of the data",
    "launch": "`torchrun --nproc-per-node N -m llmkit COMMAND ...`",
    "help": "`llmkit --help`",
}
"""Commands of other tools, and what to use here."""


class Command(TyperCommand):
    """A command whose help has no types of Python, and an example."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes arguments, options and an example into the help."""
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            params = [each for each in self.get_params(ctx) if each.param_type_name == kind]
            records = [record for each in params if (record := each.get_help_record(ctx))]
            with formatter.section(title):
                formatter.write_dl([(name.partition(" <")[0], said) for name, said in records])
        if example := FIRST.get(str(self.name)):
            with formatter.section("Example"):
                formatter.write_text(example)


class Commands(TyperGroup):
    """The commands in groups; an unknown one is answered with what to type."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands into the help, group by group."""
        grouped = {name for names in GROUPS.values() for name in names}
        others = [name for name in self.list_commands(ctx) if name not in grouped]
        for title, names in {**GROUPS, "Help": tuple(others)}.items():
            if rows := [(name, self.commands[name].get_short_help_str(100)) for name in names]:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the arguments; raises UsageError for an unknown one."""
        name = args[0]
        if name.startswith("-") or name in self.commands:
            return super().resolve_command(ctx, args)
        raise UsageError(f"there is no command `{name}`", next=self._instead(name))

    def _instead(self, name: str) -> str:
        if near := difflib.get_close_matches(name, self.commands, n=1, cutoff=0.75):
            return f"did you mean `llmkit {near[0]}`?"
        if known := difflib.get_close_matches(name.lower(), ELSEWHERE, n=1, cutoff=0.85):
            return ELSEWHERE[known[0]]
        return "`llmkit --help` lists the commands"
