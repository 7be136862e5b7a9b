"""What `llmkit --help` shows, and the answer to an unknown command."""

from __future__ import annotations

import difflib
from typing import Any

from typer.core import TyperCommand, TyperGroup

from llmkit.errors import UsageError

GROUPS = {
    "Train": ("pretrain", "finetune"),
    "Use": ("generate", "chat", "predict"),
    "Measure": ("evaluate", "report"),
}
"""The commands by purpose; any other is listed under `Help`."""

FIRST = {
    "pretrain": "llmkit pretrain --text corpus.txt",
    "finetune": "llmkit finetune --csv reviews.csv",
    "generate": 'llmkit generate --model runs/mine --prompt "Once upon a time"',
    "chat": "llmkit chat --model runs/mine",
    "predict": "llmkit predict --model runs/mine --csv new.csv --output labels.csv",
    "evaluate": "llmkit evaluate --model runs/mine --text test.txt",
    "report": "llmkit report runs/mine runs/other --open",
    "init": "llmkit init classifier --csv reviews.csv",
}
"""An example of each command."""

EPILOG = "\n".join(
    (
        "\b",
        "Examples:",
        *(f"  {line}" for line in FIRST.values() if "chat" not in line),
        "",
        "\b",
        "More help:",
        "  llmkit COMMAND --help          the options of a command",
        "  llmkit keys [WORD]             what each config key means",
        "  llmkit COMMAND --print-config  the value of every key",
    )
)

USE = "`llmkit generate` to continue texts, `llmkit predict` to label rows"

ELSEWHERE = {
    "train": "`llmkit pretrain` for raw text, `llmkit finetune` for labelled rows or chats",
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
    "resume": "the command that started the run: run it again to resume from the last checkpoint",
    "continue": "the command that started the run: run it again to resume where it stopped",
    "compare": "`llmkit report runs/a runs/b`, or on other text `llmkit evaluate --model runs/a "
    "--model runs/b --text test.txt`",
    "runs": "`ls runs`, and `llmkit report RUN...` for their figures",
    "list": "`ls runs`, and `llmkit report RUN...` for their figures",
    "plot": "`llmkit report runs/mine`",
    "info": "`llmkit env` for this installation, `llmkit report RUN` for a run",
    "doctor": "`llmkit env`",
    "version": "`llmkit --version`",
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
    "merge": "nothing to do: LoRA updates are already merged into runs/mine/final",
    "push": "`hf upload NAME runs/mine/final` uploads the model",
    "upload": "`hf upload NAME runs/mine/final` uploads the model",
    "download": "nothing to do: `--model OWNER/NAME` downloads a model on first use",
    "tokenize": "`llmkit pretrain --text corpus.txt`, which also trains a tokenizer",
    "prepare": "`llmkit pretrain --text corpus.txt --dry-run`, which checks the data",
    "preprocess": "`llmkit pretrain --text corpus.txt --dry-run`, which checks the data",
    "clean": "`llmkit finetune --csv rows.csv --dry-run`, which reports problems in the data",
    "launch": "`torchrun --nproc-per-node N -m llmkit COMMAND ...`",
    "help": "`llmkit --help`",
}
"""Commands of other tools, and what to use instead."""


class Command(TyperCommand):
    """A command whose help shows an example, and no Python types."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes arguments, options and an example into the help."""
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            params = [each for each in self.get_params(ctx) if each.param_type_name == kind]
            records = [record for each in params if (record := each.get_help_record(ctx))]
            if not records:
                continue
            with formatter.section(title):
                formatter.write_dl([(name.partition(" <")[0], text) for name, text in records])
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
