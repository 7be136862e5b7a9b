"""What `llmkit --help` shows, and the answer to an unknown command."""

from __future__ import annotations

import difflib
import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from typer import TyperException
from typer.core import TyperCommand, TyperGroup

import llmkit
from llmkit.errors import UsageError

_GROUPS = {
    "Train": ("pretrain", "finetune", "merge"),
    "Use": ("generate", "chat", "predict", "serve"),
    "Measure": ("evaluate", "report"),
    "Ship": ("export", "push"),
    "Data": ("clean", "prepare"),
}
"""The commands by purpose; any other is listed under `Help`."""

FIRST = {
    "pretrain": "llmkit pretrain --text corpus.txt",
    "finetune": "llmkit finetune --csv reviews.csv",
    "merge": "llmkit merge --expert code=runs/code --expert poems=runs/poems",
    "generate": 'llmkit generate --model runs/mine --prompt "Once upon a time"',
    "chat": "llmkit chat --model runs/mine",
    "predict": "llmkit predict --model runs/mine --csv new.csv --output labels.csv",
    "serve": "llmkit serve --model runs/mine --model stars=runs/stars",
    "evaluate": "llmkit evaluate --model runs/mine --text test.txt",
    "report": "llmkit report runs/mine runs/other --open",
    "export": "llmkit export --model runs/mine --type q8_0 --output mine.gguf",
    "push": "llmkit push runs/mine --repo mine",
    "clean": "llmkit clean --text corpus --output cleaned",
    "prepare": "llmkit prepare --text corpus/ --workers 8",
    "init": "llmkit init classifier --csv reviews.csv",
    "launch": "llmkit launch 2 -- pretrain --text corpus.txt",
}
"""An example of each command."""

_PACKAGE = Path(llmkit.__file__).parent
_README = [
    str(path)
    for path in (_PACKAGE / "README.md", _PACKAGE.parent.parent / "README.md")
    if path.is_file()
]
"""The documentation of this installation: in a wheel, or in a clone."""

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
        *(f"  {path}" for path in _README[:1]),
    )
)

_USE = "`llmkit generate` to continue texts, `llmkit predict` to label rows"
_HUGGING_FACE = "runs/mine/final is a Hugging Face model"
_DOCUMENTED = "`llmkit --help` and `llmkit COMMAND --help`; `llmkit keys WORD` explains config keys"

_INSTEAD = {
    "train fit learn start": "`llmkit pretrain` for raw text, `llmkit finetune` for labelled rows "
    "or chats",
    "sft instruct": "`llmkit finetune train.objective=completion --csv chats.jsonl --model MODEL`",
    "lora qlora peft": "`llmkit finetune --csv rows.csv --model MODEL model.lora.r=8`",
    "dpo ipo preference prefer": "`llmkit finetune train.objective=preference --csv pairs.jsonl "
    "--model MODEL`, with the columns prompt, chosen and rejected",
    "orpo kto rlhf ppo grpo reward": "llmkit trains on pairs of responses (DPO, IPO): `llmkit "
    "finetune train.objective=preference --csv pairs.jsonl --model MODEL`",
    "tune adapt": "`llmkit finetune --csv rows.csv --model MODEL`",
    "mlm": "`llmkit pretrain --text corpus.txt train.objective=masked`",
    "distill prune": "llmkit does not compress models; `llmkit generate generation.weights=int8` "
    "keeps one byte per weight",
    "test eval score validate ppl perplexity metrics": "`llmkit evaluate --model runs/mine`, with "
    "`--text` or `--csv`",
    "bench benchmark lm-eval harness": "`llmkit evaluate --model runs/mine --tasks hellaswag`",
    "sample complete prompt": "`llmkit generate --model runs/mine --prompt TEXT`",
    "infer inference run use pipeline": _USE,
    "classify label annotate": "`llmkit predict --model runs/mine --csv new.csv`",
    "fill fill-mask unmask": '`llmkit generate --model runs/mine --prompt "a text with a [MASK]"`, '
    "with a masked model",
    "translate summarize summarise": "`llmkit finetune --csv pairs.csv "
    "train.objective=sequence_to_sequence`, then `llmkit generate --model RUN --prompt TEXT`",
    "embed embeddings": "llmkit computes no embeddings; sentence-transformers does",
    "talk ask webchat chat-web": "`llmkit chat --model runs/mine`, on the terminal",
    "resume continue restart": "the command that started the run: run it again to resume where it "
    "stopped",
    "stop kill": "press Ctrl-C where the run was started; the same command resumes it",
    "compare diff": "`llmkit report runs/a runs/b`, or on other text `llmkit evaluate --model "
    "runs/a --model runs/b --text test.txt`",
    "runs list ls show status": "`ls runs`, and `llmkit report RUN...` for their figures",
    "plot card summary results dashboard": "`llmkit report runs/mine`; runs/mine/final/README.md "
    "is the model card",
    "log logs tail watch": "`tail -f runs/mine/metrics.jsonl`, or `llmkit report runs/mine` while "
    "it trains",
    "tensorboard wandb mlflow trackio track": "`report_to=NAME` after `pretrain` or `finetune`, "
    "with tensorboard, wandb, mlflow or trackio",
    "sweep hyperopt search grid": "`llmkit pretrain` or `llmkit finetune` with several values "
    "and `--sweep`: `llmkit finetune --csv rows.csv train.learning_rate=1e-5,3e-5 --sweep`",
    "info": "`llmkit env` for this installation, `llmkit report RUN` for a run",
    "doctor system": "`llmkit env`",
    "version": "`llmkit --version`",
    "help man docs doc manual tutorial": _DOCUMENTED,
    "config settings options params parameters": "`llmkit keys` for every key, `llmkit pretrain "
    "--print-config` for their values",
    "new create example examples template templates quickstart demo": "`llmkit init` writes a "
    "commented config for a job",
    "check lint verify": "`--dry-run` after any command checks data and config",
    "completion completions": "`llmkit --install-completion`",
    "server api deploy vllm vllm-serve webui web ui gui": "`llmkit serve --model runs/mine`; "
    "it also has a page to try the model by hand",
    "convert save": f"{_HUGGING_FACE} already; `llmkit export --model runs/mine --output "
    "mine.gguf` converts it for llama.cpp, `--format onnx` for ONNX Runtime",
    "onnx": "`llmkit export --model runs/mine --format onnx --output mine-onnx`",
    "gguf llamacpp ollama": "`llmkit export --model runs/mine --output mine.gguf`",
    "quantize quantise quant": "`llmkit generate --model runs/mine --prompt TEXT "
    "generation.weights=int8`",
    "merge-lora fuse": "LoRA updates are already merged into runs/mine/final; `llmkit export "
    "--format peft` writes them apart",
    "average ensemble moe": "`llmkit merge`",
    "upload publish share": "`llmkit push runs/mine --repo NAME`",
    "download pull fetch hub": "nothing to do: `--model OWNER/NAME` downloads a model on first use",
    "login auth": "`hf auth login`; llmkit uses its token",
    "tokenize tokenizer tokenise train-tokenizer build-tokenizer vocab": "`llmkit pretrain --text "
    "corpus.txt`, which also trains a tokenizer; `llmkit prepare` does it ahead",
    "preprocess process data dataset split": "nothing to do: training prepares and caches the "
    "data; `llmkit pretrain --text corpus.txt --dry-run` reports on it, and `llmkit prepare` does "
    "it ahead",
    "dedup deduplicate filter": "`llmkit clean --text corpus --output cleaned`; `llmkit finetune "
    "--csv rows.csv --dry-run` lists duplicates and contradicting labels",
    "accelerate torchrun distributed srun": "`llmkit launch N -- COMMAND ...`, "
    "`torchrun --nproc-per-node N -m llmkit COMMAND ...` or `srun llmkit COMMAND ...`",
    "delete remove rm": "`rm -r runs/mine` removes a run",
    "cache": "`llmkit env` prints where the caches are",
    "install update upgrade": "pip, uv or git, whichever installed llmkit; `llmkit env` prints "
    "where it is",
}

ELSEWHERE = {word: answer for words, answer in _INSTEAD.items() for word in words.split()}
"""Commands of other tools, and what to use instead."""


_NARROW = 60
"""Columns of a terminal below which a long option precedes its text on a separate line."""


def _fit(formatter: Any) -> None:
    """Fits help to a narrow terminal; Click's lines have at least 50 columns."""
    width = shutil.get_terminal_size().columns
    formatter.width = min(formatter.width, max(width - 2, 20))
    if width < _NARROW:
        formatter.write_dl = partial(formatter.write_dl, col_max=10)


class Command(TyperCommand):
    """A command whose help shows an example, and no Python types."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the arguments; an error knows the command that it belongs to."""
        try:
            return super().parse_args(ctx, args)
        except TyperException as fault:
            fault.ctx = getattr(fault, "ctx", None) or ctx  # type: ignore[attr-defined]
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help, fitted to the terminal."""
        _fit(formatter)
        super().format_help(ctx, formatter)

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

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help, fitted to the terminal."""
        _fit(formatter)
        super().format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands into the help, group by group."""
        grouped = {name for names in _GROUPS.values() for name in names}
        others = [name for name in self.list_commands(ctx) if name not in grouped]
        for title, names in {**_GROUPS, "Help": tuple(others)}.items():
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
        word = name.lower().replace("_", "-")
        if word in ELSEWHERE:
            return ELSEWHERE[word]
        if near := difflib.get_close_matches(word, self.commands, n=1, cutoff=0.75):
            return f"did you mean `llmkit {near[0]}`?"
        if known := difflib.get_close_matches(word, ELSEWHERE, n=1, cutoff=0.85):
            return ELSEWHERE[known[0]]
        if "=" in name or Path(name).exists():
            first = "finetune" if name.endswith((".csv", ".tsv", ".parquet")) else "pretrain"
            return f"a command comes first: `llmkit {first} {shlex.quote(name)}`"
        return "`llmkit --help` lists the commands"
